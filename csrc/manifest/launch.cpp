#include "manifest/launch.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace glimt::manifest {
namespace {

constexpr int64_t kMaxGrid = std::numeric_limits<int32_t>::max();

const char* apply(Op op, int64_t a, int64_t b, int64_t& to) {
    bool wide = false;
    switch (op) {
        case Op::add:
            wide = __builtin_add_overflow(a, b, &to);
            break;
        case Op::subtract:
            wide = __builtin_sub_overflow(a, b, &to);
            break;
        case Op::multiply:
            wide = __builtin_mul_overflow(a, b, &to);
            break;
        case Op::divide_up:
            if (b <= 0) return "a number is divided by one that is not positive";
            to = a / b + (a % b > 0);
            break;
        case Op::equal:
            to = a == b;
            break;
        case Op::unequal:
            to = a != b;
            break;
        case Op::both:
            to = a != 0 && b != 0;
            break;
        default:
            to = a != 0 || b != 0;
    }
    return wide ? "a number overflows" : nullptr;
}

// The reader has counted: the stack holds every operand and never more than kMaxDepth.
const char* evaluate(const Code& code, const Sizes& sizes, int64_t& to) {
    std::array<int64_t, kMaxDepth> stack;
    size_t depth = 0;
    for (const Token& token : code) {
        if (token.op == Op::number) {
            stack[depth++] = token.value;
        } else if (token.op == Op::size) {
            stack[depth++] = sizes[static_cast<size_t>(token.value)];
        } else {
            --depth;
            if (const char* wrong = apply(token.op, stack[depth - 1], stack[depth], stack[depth - 1])) return wrong;
        }
    }
    to = stack[0];
    return nullptr;
}

template <typename T>
void put(Launch& to, size_t offset, T value) {
    std::memcpy(to.params.data() + offset, &value, sizeof(T));
}

const char* put_number(const Argument& argument, const Sizes& sizes, Launch& to, size_t offset) {
    int64_t value = 0;
    if (const char* wrong = evaluate(argument.code, sizes, value)) return wrong;
    const bool narrow = argument.type == Type::i32;
    if (narrow && (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max()))
        return "a number does not fit its type";
    if (value % argument.divisible != 0) return "a number is not the multiple that the kernel was compiled for";
    narrow ? put(to, offset, static_cast<int32_t>(value)) : put(to, offset, value);
    return nullptr;
}

const char* put_argument(const Argument& argument, const Sizes& sizes, const uint64_t* addresses,
                         const double* attributes, Launch& to, size_t offset) {
    if (argument.kind == Kind::tensor) {
        const uint64_t address = addresses[argument.source];
        if (address % static_cast<uint64_t>(argument.divisible) != 0)
            return "an address is not the multiple that the kernel was compiled for";
        put(to, offset, address);
    } else if (argument.kind == Kind::attribute) {
        const double wide = attributes[argument.source] * argument.factor;
        const auto value = static_cast<float>(wide);
        if (std::isinf(value) && !std::isinf(wide)) return "an attribute overflows";
        put(to, offset, value);
    } else if (argument.kind == Kind::null) {
        put(to, offset, uint64_t{0});
    } else {
        return put_number(argument, sizes, to, offset);
    }
    return nullptr;
}

}  // namespace

const char* bind(const Kernel& kernel, const Shape* shapes, size_t count, Sizes& sizes, bool wildcards) {
    if (count != kernel.tensors.size()) return "the number of tensors is another";
    std::array<bool, kMaxSizes> known{};
    for (size_t i = 0; i < count; ++i) {
        const Axes& axes = kernel.tensors[i].axes;
        if (shapes[i].axes != axes.size()) return "a tensor has another number of axes";
        for (size_t j = 0; j < axes.size(); ++j) {
            const int64_t size = shapes[i].sizes[j];
            const auto index = static_cast<size_t>(axes[j].value);
            if (size < 0 && wildcards) continue;
            if (size < 0) return "a size is negative";
            if (axes[j].op == Op::number) {
                if (axes[j].value != size) return "a size is not the one that the kernel was compiled for";
            } else if (!known[index]) {
                known[index] = true;
                sizes[index] = size;
            } else if (sizes[index] != size) {
                return "sizes that must be equal differ";
            }
        }
    }
    return nullptr;
}

const char* admits(const Kernel& kernel, const Sizes& sizes) {
    for (const Code& code : kernel.requires_) {
        int64_t holds = 0;
        if (const char* wrong = evaluate(code, sizes, holds)) return wrong;
        if (holds == 0) return "a requirement of the kernel does not hold";
    }
    return nullptr;
}

const char* launch(const Kernel& kernel, const Shape* shapes, size_t count, const uint64_t* addresses,
                   const double* attributes, Launch& to) {
    Sizes sizes{};
    if (const char* wrong = bind(kernel, shapes, count, sizes)) return wrong;
    if (const char* wrong = admits(kernel, sizes)) return wrong;
    if (const char* wrong = evaluate(kernel.grid, sizes, to.grid)) return wrong;
    if (to.grid < 0 || to.grid > kMaxGrid) return "the grid is too large";
    to.bytes = 0;
    for (size_t i = 0; i < kernel.arguments.size(); ++i) {
        const Argument& argument = kernel.arguments[i];
        const size_t offset = (to.bytes + argument.bytes() - 1) / argument.bytes() * argument.bytes();
        std::memset(to.params.data() + to.bytes, 0, offset - to.bytes);
        if (const char* wrong = put_argument(argument, sizes, addresses, attributes, to, offset)) return wrong;
        to.offsets[i] = offset;
        to.bytes = offset + argument.bytes();
    }
    return nullptr;
}

}  // namespace glimt::manifest
