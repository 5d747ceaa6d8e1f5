// Reads what an operation is told (common/args.h) from a Python dict with one entry for each field; addresses and enums
// are integers there. A missing entry, one too many or one of another type is a TypeError that names it.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <sstream>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace journey {

namespace py = pybind11;

// The names of a struct's fields, as Python strings that are made once.
template <typename args_t>
const std::vector<PyObject*>& field_names() {
    static const std::vector<PyObject*> names = [] {
        std::istringstream words(args_t::field_names());
        std::vector<PyObject*> found;
        for (std::string name; std::getline(words >> std::ws, name, ',');)
            found.push_back(PyUnicode_InternFromString(name.c_str()));
        return found;
    }();
    return names;
}

// Reads a list of structs.
template <typename args_t>
bool read_list(py::handle given, std::vector<args_t>& list);

template <typename value_t>
constexpr bool kIsListOfStructs = false;
template <typename item_t>
constexpr bool kIsListOfStructs<std::vector<item_t>> = !std::is_arithmetic_v<item_t>;

// Whether `given` is a value of this type.
template <typename value_t>
bool read(py::handle given, value_t& value) {
    if constexpr (kIsListOfStructs<value_t>) {
        return read_list(given, value);
    } else if constexpr (std::is_pointer_v<value_t>) {
        uintptr_t address = 0;
        const bool fits = read(given, address);
        value = reinterpret_cast<value_t>(address);
        return fits;
    } else if constexpr (std::is_enum_v<value_t>) {
        int code = 0;
        const bool fits = read(given, code);
        value = static_cast<value_t>(code);
        return fits;
    } else {
        py::detail::make_caster<value_t> caster;
        const bool fits = caster.load(given, /*convert=*/false);
        if (fits) value = py::detail::cast_op<value_t>(caster);
        return fits;
    }
}

template <typename value_t, size_t kCount>
bool read(py::handle given, value_t (&values)[kCount]) {
    std::array<value_t, kCount> list{};
    const bool fits = read(given, list);
    std::copy(list.begin(), list.end(), values);
    return fits;
}

template <typename args_t>
args_t read_args(const py::dict& given);

template <typename args_t>
bool read_list(py::handle given, std::vector<args_t>& list) {
    for (const py::handle item : given) list.push_back(read_args<args_t>(item.cast<py::dict>()));
    return true;
}

template <typename args_t>
[[noreturn]] void refuse(py::handle name, const std::string& why) {
    throw py::type_error(py::type_id<args_t>() + ": " + py::str(name).cast<std::string>() + " " + why);
}

template <typename args_t>
args_t read_args(const py::dict& given) {
    const std::vector<PyObject*>& names = field_names<args_t>();
    args_t args{};
    const auto read_field = [&](py::handle name, auto& field) {
        const py::handle value = PyDict_GetItemWithError(given.ptr(), name.ptr());
        if (!value) refuse<args_t>(name, "is missing");
        if (!read(value, field))
            refuse<args_t>(
                name, "must fit " + py::type_id<decltype(field)>() + ", got " + py::repr(value).cast<std::string>());
    };
    auto name = names.begin();
    std::apply([&](auto&... field) { (read_field(*name++, field), ...); }, args.fields());
    if (given.size() != names.size())
        for (const auto& [key, value] : given)
            if (std::none_of(names.begin(), names.end(), [&](py::handle known) { return known.equal(key); }))
                refuse<args_t>(key, "is not one of " + std::string(args_t::field_names()));
    return args;
}

}  // namespace journey
