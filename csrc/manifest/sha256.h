// SHA-256 (FIPS 180-4), so that a reader of manifests needs no library.
#pragma once

#include <string>
#include <string_view>

namespace glimt::manifest {

// In lowercase hex.
std::string sha256(std::string_view content);

}  // namespace glimt::manifest
