// Kernels compiled ahead of time, as python -m glimt_kernels.manifest writes them: the reader for C++17, without Python
// and without CUDA. The format is described in kernels/glimt_kernels/manifest/text.py, which this follows line by line.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace glimt::manifest {

// A file is not what was written, or does not say what was asked for.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

constexpr const char* kFile = "kernels.manifest";
constexpr size_t kMaxAxes = 8, kMaxSizes = 16, kMaxTensors = 16, kMaxArguments = 48, kMaxCode = 48, kMaxDepth = 8;
constexpr size_t kMaxParamBytes = 512;

enum class DType { fp32, fp16, bf16 };
enum class Kind { tensor, number, attribute, null };
enum class Type { pointer, i32, i64, fp32 };
enum class Op { number, size, add, subtract, multiply, divide_up, equal, unequal, both, either };

// A word of an expression in postfix order: `value` is the number, or the index of the size.
struct Token {
    Op op;
    int64_t value;
};
using Code = std::vector<Token>;

// Op::number: a length of `value`; Op::size: one that varies.
using Axes = std::vector<Token>;

struct TensorRule {
    std::string name;
    DType dtype;
    Axes axes;
};

struct Argument {
    std::string name;
    Type type;
    int64_t divisible;
    Kind kind;
    size_t source = 0;  // index of the tensor (inputs, then outputs) or of the attribute
    double factor = 1;
    Code code;

    size_t bytes() const { return type == Type::i32 || type == Type::fp32 ? 4 : 8; }
};

struct Cubin {
    std::string target, file;
    int64_t bytes;
    std::string sha256, source;
    int64_t registers, shared_bytes, warps;
    std::string entry;
};

struct Kernel {
    std::string op, case_;
    std::vector<std::string> attributes, sizes;
    std::vector<TensorRule> tensors;  // inputs, then outputs
    size_t inputs = 0;
    std::vector<Code> requires_;
    Code grid;
    std::vector<Argument> arguments;
    std::vector<Cubin> cubins;

    // The input whose shape output `index` has.
    size_t shape_of_output(size_t index) const;
};

struct Manifest {
    std::string compiler;
    std::string digest;  // of the whole file: what an engine is built for
    std::vector<Kernel> kernels;
};

// Throws Error with the number of the line.
Manifest parse(std::string_view content);

// The manifest of a folder. Throws Error with the path: missing, cut short, changed, of another format.
Manifest read_manifest(const std::string& folder);

// A cubin's bytes, compared with the manifest. Throws Error.
std::string read_cubin(const std::string& folder, const Cubin& cubin);

// The cubin for a chip (89: compute capability 8.9): its own, else the newest older one of the same generation.
// Throws Error where none runs there.
const Cubin& choose(const Kernel& kernel, int capability);

}  // namespace glimt::manifest
