#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>

#include "manifest/manifest.h"
#include "manifest/sha256.h"

namespace glimt::manifest {
namespace {

std::string read(const std::string& path) {
    const std::string again = "write the folder anew with: python -m glimt_kernels.manifest --out DIR";
    std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
    if (!file && errno == ENOENT) throw Error("is missing; " + again);
    if (!file) throw Error(std::string("cannot be read: ") + std::strerror(errno));
    std::string content;
    std::array<char, 65536> chunk;
    while (const size_t count = std::fread(chunk.data(), 1, chunk.size(), file.get()))
        content.append(chunk.data(), count);
    if (std::ferror(file.get())) throw Error(std::string("cannot be read: ") + std::strerror(errno));
    return content;
}

int number_of(std::string_view target) {
    int number = 0;
    std::from_chars(target.data() + 3, target.data() + target.size(), number);
    return number;
}

bool runs(const Cubin& cubin, int capability) {
    const int number = number_of(cubin.target);
    // With an "a" it is made for this chip, with what no later one need have.
    if (cubin.target.back() == 'a') return number == capability;
    return number / 10 == capability / 10 && number <= capability;
}

}  // namespace

Manifest read_manifest(const std::string& folder) {
    const std::string path = folder + "/" + kFile;
    try {
        return parse(read(path));
    } catch (const Error& error) {
        throw Error(path + ": " + error.what());
    }
}

std::string read_cubin(const std::string& folder, const Cubin& cubin) {
    const std::string path = folder + "/" + cubin.file;
    const std::string again = "; write the folder anew with: python -m glimt_kernels.manifest --out DIR";
    try {
        std::string content = read(path);
        if (content.size() != static_cast<size_t>(cubin.bytes))
            throw Error("has " + std::to_string(content.size()) + " bytes, " + std::to_string(cubin.bytes) +
                        " were written" + again);
        if (sha256(content) != cubin.sha256) throw Error("its SHA-256 is not that of what was written" + again);
        return content;
    } catch (const Error& error) {
        throw Error(path + ": " + error.what());
    }
}

const Cubin& choose(const Kernel& kernel, int capability) {
    const Cubin* best = nullptr;
    std::string there;
    for (const Cubin& cubin : kernel.cubins) {
        there += (there.empty() ? "" : ", ") + cubin.target;
        const bool fits = runs(cubin, capability);
        if (fits && (best == nullptr || number_of(cubin.target) > number_of(best->target))) best = &cubin;
    }
    if (best == nullptr)
        throw Error(kernel.op + " " + kernel.case_ + " has no cubin for sm_" + std::to_string(capability) +
                    "; it has " + there);
    return *best;
}

}  // namespace glimt::manifest
