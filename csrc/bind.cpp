// glimt_kernels._native: what Python may call. No torch header: tensors come as DLPack views.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace nb = nanobind;

NB_MODULE(_native, m) {
    m.doc() = "Native kernels of glimt_kernels; call them through the package, which checks their arguments.";
    m.def("isa", [] { return std::string(glimt::kernels().isa); }, "Instruction set in use.");
    m.def(
        "isas",
        [] {
            std::vector<std::string> names;
            for (const char* const* name = glimt::available_isas(); *name != nullptr; ++name)
                names.emplace_back(*name);
            return names;
        },
        "Instruction sets that this processor can run, worst first.");
    m.def(
        "select_isa",
        [](const std::string& name) {
            if (!glimt::select_isa(name.c_str()))
                throw nb::value_error(("no such instruction set here: " + name).c_str());
        },
        nb::arg("name"), "Use another instruction set from now on (for tests and measurements).");
}
