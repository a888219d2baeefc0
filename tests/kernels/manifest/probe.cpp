// The C++ reader of manifests behind a line protocol, for the tests: a command a line in, a line out, "ok ..." or
// "error ...". Compiled with sanitizers; whatever comes in, an answer must come out.
//
//     parse HEX                                the manifest written anew, in hex
//     sha256 HEX                               its digest
//     folder PATH                              read it, and every cubin
//     launch KERNEL SHAPES ADDRESSES FACTORS   on the manifest parsed last; "2,3;4" is two shapes, "-" none
//     choose KERNEL CAPABILITY
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "manifest/launch.h"
#include "manifest/sha256.h"

namespace {

using namespace glimt::manifest;

std::string hex(std::string_view bytes) {
    std::string text;
    for (const char byte : bytes) {
        text += "0123456789abcdef"[(byte >> 4) & 15];
        text += "0123456789abcdef"[byte & 15];
    }
    return text;
}

std::string unhex(const std::string& text) {
    std::string bytes;
    for (size_t i = 0; i + 1 < text.size(); i += 2)
        bytes += static_cast<char>(std::strtol(text.substr(i, 2).c_str(), nullptr, 16));
    return bytes;
}

std::string words(const Kernel& kernel, const Code& code) {
    constexpr const char* kOps[] = {"", "", "+", "-", "*", "cdiv", "==", "!=", "and", "or"};
    std::string text;
    for (const Token& token : code) {
        text += ' ';
        if (token.op == Op::number)
            text += std::to_string(token.value);
        else if (token.op == Op::size)
            text += kernel.sizes.at(static_cast<size_t>(token.value));
        else
            text += kOps[static_cast<size_t>(token.op)];
    }
    return text;
}

// Pointers are told apart by what their kind says only: their element types are written as *i8.
void write(const Kernel& k, std::ostream& to) {
    constexpr const char* kDTypes[] = {"fp32", "fp16", "bf16"};
    constexpr const char* kTypes[] = {"*i8", "i32", "i64", "fp32"};
    to << "kernel " << k.op << ' ' << k.case_ << '\n';
    for (const std::string& attribute : k.attributes)
        to << "attr " << attribute << '\n';
    for (size_t i = 0; i < k.tensors.size(); ++i)
        to << (i < k.inputs ? "in " : "out ") << k.tensors[i].name << ' '
           << kDTypes[static_cast<size_t>(k.tensors[i].dtype)] << words(k, k.tensors[i].axes) << '\n';
    for (const Code& code : k.requires_)
        to << "require" << words(k, code) << '\n';
    to << "grid" << words(k, k.grid) << '\n';
    for (const Argument& a : k.arguments) {
        to << "arg " << a.name << ' ' << kTypes[static_cast<size_t>(a.type)] << ' ' << a.divisible;
        if (a.kind == Kind::tensor) to << " tensor " << k.tensors.at(a.source).name;
        if (a.kind == Kind::number) to << " int" << words(k, a.code);
        if (a.kind == Kind::attribute) to << " attr " << k.attributes.at(a.source) << ' ' << a.factor;
        if (a.kind == Kind::null) to << " null";
        to << '\n';
    }
    for (const Cubin& c : k.cubins)
        to << "cubin " << c.target << ' ' << c.file << ' ' << c.bytes << ' ' << c.sha256 << ' ' << c.source << ' '
           << c.registers << ' ' << c.shared_bytes << ' ' << c.warps << ' ' << c.entry << '\n';
}

std::string written(const Manifest& manifest) {
    std::ostringstream to;
    to.precision(17);
    to << "compiler " << manifest.compiler << '\n' << "digest " << manifest.digest << '\n';
    for (const Kernel& kernel : manifest.kernels) {
        write(kernel, to);
        for (size_t i = 0; i + kernel.inputs < kernel.tensors.size(); ++i)
            to << "as " << kernel.shape_of_output(i) << '\n';
    }
    return to.str();
}

// "1,2" as numbers; "-" is none of them.
template <typename T, typename Read>
std::vector<T> numbers(const std::string& text, Read read) {
    std::vector<T> made;
    std::istringstream from(text == "-" ? "" : text);
    for (std::string word; std::getline(from, word, ',');)
        made.push_back(read(word.c_str()));
    return made;
}

int64_t signed_number(const char* word) {
    return std::strtoll(word, nullptr, 10);
}
uint64_t address(const char* word) {
    return std::strtoull(word, nullptr, 10);
}
double real(const char* word) {
    return std::strtod(word, nullptr);
}

std::string launched(const Kernel& kernel, std::istream& from) {
    std::string shapes_text, addresses_text, factors_text;
    from >> shapes_text >> addresses_text >> factors_text;
    std::vector<std::vector<int64_t>> sizes;
    std::istringstream each(shapes_text);
    for (std::string word; std::getline(each, word, ';');)
        sizes.push_back(numbers<int64_t>(word, signed_number));
    std::vector<Shape> shapes;
    for (const auto& s : sizes)
        shapes.push_back({s.data(), s.size()});
    const auto addresses = numbers<uint64_t>(addresses_text, address);
    const auto factors = numbers<double>(factors_text, real);
    Launch to;
    if (const char* wrong = launch(kernel, shapes.data(), shapes.size(), addresses.data(), factors.data(), to))
        return std::string("error ") + wrong;
    const std::string_view bytes(reinterpret_cast<const char*>(to.params.data()), to.bytes);
    return "ok " + std::to_string(to.grid) + " " + hex(bytes);
}

std::string answer(const std::string& line, Manifest& last) {
    std::istringstream from(line);
    std::string command, word;
    from >> command;
    if (command == "parse") {
        from >> word;
        last = parse(unhex(word));
        return "ok " + hex(written(last));
    }
    if (command == "sha256") {
        from >> word;
        return "ok " + sha256(unhex(word));
    }
    if (command == "folder") {
        std::getline(from >> std::ws, word);
        last = read_manifest(word);
        for (const Kernel& kernel : last.kernels)
            for (const Cubin& cubin : kernel.cubins)
                read_cubin(word, cubin);
        return "ok";
    }
    size_t index = 0;
    from >> index;
    const Kernel& kernel = last.kernels.at(index);
    if (command == "launch") return launched(kernel, from);
    int capability = 0;
    from >> capability;
    return "ok " + choose(kernel, capability).target;
}

}  // namespace

int main() {
    Manifest last;
    for (std::string line; std::getline(std::cin, line);) {
        std::string says;
        try {
            says = answer(line, last);
        } catch (const Error& error) {
            says = std::string("error ") + error.what();
        }
        std::cout << says << std::endl;
    }
}
