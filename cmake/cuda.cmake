# Adds the CUDA kernels to _native when JOURNEY_CUDA allows it and nvcc is there; else records why not.
include(CheckLanguage)

string(TOLOWER "${JOURNEY_CUDA}" JOURNEY_CUDA)
if(NOT JOURNEY_CUDA MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "JOURNEY_CUDA must be auto, on or off, got '${JOURNEY_CUDA}'")
endif()

set(cuda_off_reason "")
if(JOURNEY_CUDA STREQUAL "off")
  set(cuda_off_reason "built with JOURNEY_CUDA=off")
else()
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(cuda_off_reason "nvcc was not found when the package was built")
    if(JOURNEY_CUDA STREQUAL "on")
      message(FATAL_ERROR "JOURNEY_CUDA=on, but nvcc was not found: install the CUDA toolkit, put nvcc on the PATH or "
                          "set CUDACXX, or build with JOURNEY_CUDA=off")
    endif()
  endif()
endif()

if(cuda_off_reason)
  message(STATUS "journey: CPU kernels only, ${cuda_off_reason}")
  target_compile_definitions(_native PRIVATE JOURNEY_CUDA_OFF_REASON="${cuda_off_reason}")
  return()
endif()

# Machine code for the first chip of each generation that nvcc knows (it runs on the later ones of that generation too)
# and for the common later ones; PTX of the newest for chips to come.
if(JOURNEY_CUDA_ARCHS)
  string(REPLACE "," ";" architectures "${JOURNEY_CUDA_ARCHS}")
else()
  execute_process(
    COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch
    OUTPUT_VARIABLE listed COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[0-9]+" supported "${listed}")
  set(architectures "")
  foreach(architecture 75 80 86 89 90 100 103 110 120)
    if(architecture IN_LIST supported)
      list(APPEND architectures ${architecture})
    endif()
  endforeach()
endif()
list(GET architectures -1 newest)
list(TRANSFORM architectures APPEND "-real" OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
list(APPEND CMAKE_CUDA_ARCHITECTURES "${newest}-virtual")
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cu)
add_library(cuda_kernels OBJECT ${cuda_sources})
set_target_properties(cuda_kernels PROPERTIES CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
target_compile_options(cuda_kernels PRIVATE -lineinfo --threads=2 --Werror=all-warnings -Xcompiler=-Wall,-Wextra,-ffp-contract=off)

target_sources(_native PRIVATE csrc/bindings_cuda.cpp $<TARGET_OBJECTS:cuda_kernels>)
target_link_libraries(_native PRIVATE CUDA::cudart_static)
list(JOIN architectures " " architecture_names)
target_compile_definitions(
  _native PRIVATE JOURNEY_WITH_CUDA JOURNEY_CUDA_COMPILER="nvcc ${CMAKE_CUDA_COMPILER_VERSION}"
                  JOURNEY_CUDA_ARCHITECTURES="${architecture_names}")
