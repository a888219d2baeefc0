#pragma once

#include <nanobind/nanobind.h>

namespace glimt {

void bind_causal_conv3d(nanobind::module_& m);

}  // namespace glimt
