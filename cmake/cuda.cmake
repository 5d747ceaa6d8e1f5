# Adds the CUDA kernels to _native with JOURNEY_CUDA; else records why they are not there.
if(NOT JOURNEY_CUDA)
  target_compile_definitions(_native PRIVATE JOURNEY_CUDA_OFF_REASON="${JOURNEY_CUDA_OFF_REASON}")
  return()
endif()

# Machine code for each architecture; PTX of the last for chips to come.
list(TRANSFORM JOURNEY_CUDA_ARCHS APPEND "-real" OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
list(GET JOURNEY_CUDA_ARCHS -1 last)
list(APPEND CMAKE_CUDA_ARCHITECTURES "${last}-virtual")
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cu)
add_library(cuda_kernels OBJECT ${cuda_sources})
target_compile_options(cuda_kernels PRIVATE -lineinfo -Xcompiler=-Wall,-Wextra,-ffp-contract=off)
if(JOURNEY_WERROR)
  target_compile_options(cuda_kernels PRIVATE --Werror=all-warnings)
endif()

target_sources(_native PRIVATE csrc/bindings_cuda.cpp $<TARGET_OBJECTS:cuda_kernels>)
target_link_libraries(_native PRIVATE CUDA::cudart_static)
list(JOIN JOURNEY_CUDA_ARCHS " " architecture_names)
target_compile_definitions(
  _native PRIVATE JOURNEY_WITH_CUDA JOURNEY_CUDA_COMPILER="nvcc ${CMAKE_CUDA_COMPILER_VERSION}"
                  JOURNEY_CUDA_ARCHITECTURES="${architecture_names}")
