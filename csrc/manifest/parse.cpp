#include <algorithm>
#include <array>
#include <utility>

#include "manifest/manifest.h"
#include "manifest/sha256.h"
#include "manifest/words.h"

namespace glimt::manifest {
namespace {

template <typename Value, size_t N>
const Value* named(const std::array<std::pair<std::string_view, Value>, N>& table, std::string_view word) {
    const auto found = std::find_if(table.begin(), table.end(), [&](const auto& row) { return row.first == word; });
    return found == table.end() ? nullptr : &found->second;
}

constexpr std::array<std::pair<std::string_view, DType>, 3> kDTypes = {
    {{"fp32", DType::fp32}, {"fp16", DType::fp16}, {"bf16", DType::bf16}}};
constexpr std::array<std::pair<std::string_view, Type>, 7> kTypes = {{{"*fp32", Type::pointer},
                                                                      {"*fp16", Type::pointer},
                                                                      {"*bf16", Type::pointer},
                                                                      {"*i8", Type::pointer},
                                                                      {"i32", Type::i32},
                                                                      {"i64", Type::i64},
                                                                      {"fp32", Type::fp32}}};
constexpr std::array<std::pair<std::string_view, Op>, 8> kOperators = {{{"+", Op::add},
                                                                        {"-", Op::subtract},
                                                                        {"*", Op::multiply},
                                                                        {"cdiv", Op::divide_up},
                                                                        {"==", Op::equal},
                                                                        {"!=", Op::unequal},
                                                                        {"and", Op::both},
                                                                        {"or", Op::either}}};

template <typename Range>
bool has_name(const Range& range, std::string_view word) {
    return std::any_of(range.begin(), range.end(), [&](const auto& x) { return x.name == word; });
}

bool same(const Axes& a, const Axes& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](const Token& x, const Token& y) { return x.op == y.op && x.value == y.value; });
}

// ---- a kernel while its lines come ----------------------------------------------------------------------------------

class Draft {
  public:
    Draft(std::string op, std::string case_) {
        kernel.op = std::move(op);
        kernel.case_ = std::move(case_);
    }

    Kernel kernel;

    // A line behind the first, whose place among the others is `at`.
    void take(size_t at, const Words& words) {
        need(at >= stage_, "a line is not where it belongs in its kernel");
        stage_ = at;
        constexpr std::array<void (Draft::*)(const Words&), 7> kTakes = {
            &Draft::attr, &Draft::in, &Draft::out, &Draft::require, &Draft::grid, &Draft::arg, &Draft::cubin};
        (this->*kTakes[at - 1])(words);
    }

    void close() const {
        const Kernel& k = kernel;
        need(
            k.inputs > 0 && k.tensors.size() > k.inputs && !k.grid.empty() && !k.arguments.empty() && !k.cubins.empty(),
            "the kernel before has not all of: in, out, grid, arg, cubin");
    }

  private:
    void attr(const Words& words) {
        need(words.size() == 1, "an attr has one name");
        std::string attribute = name(words[0]);
        const auto& all = kernel.attributes;
        need(std::find(all.begin(), all.end(), attribute) == all.end(), "a name is there twice");
        kernel.attributes.push_back(std::move(attribute));
    }

    void in(const Words& words) {
        kernel.tensors.push_back(tensor(words));
        ++kernel.inputs;
    }

    void out(const Words& words) {
        TensorRule made = tensor(words);
        const auto inputs = kernel.tensors.begin() + static_cast<std::ptrdiff_t>(kernel.inputs);
        need(std::any_of(kernel.tensors.begin(), inputs, [&](const auto& x) { return same(x.axes, made.axes); }),
             "an output has the axes of no input");
        kernel.tensors.push_back(std::move(made));
    }

    TensorRule tensor(const Words& words) {
        need(words.size() >= 2 && words.size() <= 2 + kMaxAxes, "a tensor has a name, a dtype and at most 8 axes");
        TensorRule made{name(words[0]), {}, {}};
        const DType* dtype = named(kDTypes, words[1]);
        need(dtype != nullptr, "a dtype is none of fp32, fp16, bf16");
        made.dtype = *dtype;
        need(!has_name(kernel.tensors, made.name), "a name is there twice");
        need(kernel.tensors.size() < kMaxTensors, "there are too many tensors");
        for (size_t i = 2; i < words.size(); ++i)
            made.axes.push_back(axis(words[i]));
        return made;
    }

    Token axis(std::string_view word) {
        if (!word.empty() && digit(word[0])) return {Op::number, integer(word)};
        need(made_of(word, 16, upper, [](char c) { return upper(c) || digit(c); }),
             "a size is neither a number nor a name in capitals");
        const size_t index = size_index(word);
        if (index == kernel.sizes.size()) {
            need(index < kMaxSizes, "there are too many sizes");
            kernel.sizes.emplace_back(word);
        }
        return {Op::size, static_cast<int64_t>(index)};
    }

    size_t size_index(std::string_view word) const {
        const auto found = std::find(kernel.sizes.begin(), kernel.sizes.end(), word);
        return static_cast<size_t>(found - kernel.sizes.begin());
    }

    void require(const Words& words) { kernel.requires_.push_back(code(words, 0)); }

    void grid(const Words& words) {
        need(kernel.grid.empty(), "there is a second grid");
        kernel.grid = code(words, 0);
    }

    Code code(const Words& words, size_t from) const {
        need(words.size() > from && words.size() - from <= kMaxCode, "an expression has 1 to 48 words");
        Code made;
        int depth = 0;
        for (size_t i = from; i < words.size(); ++i) {
            made.push_back(token(words[i]));
            depth += made.back().op == Op::number || made.back().op == Op::size ? 1 : -1;
            need(depth >= 1 && depth <= static_cast<int>(kMaxDepth), "an expression does not add up");
        }
        need(depth == 1, "an expression does not add up");
        return made;
    }

    Token token(std::string_view word) const {
        if (!word.empty() && digit(word[0])) return {Op::number, integer(word)};
        if (const Op* op = named(kOperators, word)) return {*op, 0};
        const size_t index = size_index(word);
        need(index < kernel.sizes.size(), "an expression has a word that is neither operator nor size");
        return {Op::size, static_cast<int64_t>(index)};
    }

    void arg(const Words& words) {
        need(words.size() >= 4, "an arg has a name, a type, a multiple and a kind");
        Argument made{name(words[0]), {}, 1, Kind::null, 0, 1, {}};
        const Type* type = named(kTypes, words[1]);
        need(type != nullptr, "the type of an arg is unknown");
        made.type = *type;
        need(!has_name(kernel.arguments, made.name), "a name is there twice");
        need(kernel.arguments.size() < kMaxArguments, "there are too many args");
        made.divisible = integer(words[2], 1024);
        need(made.divisible > 0, "a multiple is 0");
        source(made, words);
        param_bytes_ = (param_bytes_ + made.bytes() - 1) / made.bytes() * made.bytes() + made.bytes();
        need(param_bytes_ <= kMaxParamBytes, "the args have more than 512 bytes");
        kernel.arguments.push_back(std::move(made));
    }

    void source(Argument& made, const Words& words) const {
        const bool pointer = made.type == Type::pointer;
        if (words[3] == "tensor") {
            made.kind = Kind::tensor;
            need(pointer && words.size() == 5 && has_name(kernel.tensors, words[4]),
                 "an arg of kind tensor is a pointer to one");
            const auto found = std::find_if(kernel.tensors.begin(), kernel.tensors.end(),
                                            [&](const TensorRule& x) { return x.name == words[4]; });
            made.source = static_cast<size_t>(found - kernel.tensors.begin());
        } else if (words[3] == "attr") {
            made.kind = Kind::attribute;
            const auto& all = kernel.attributes;
            const auto found = words.size() == 6 ? std::find(all.begin(), all.end(), words[4]) : all.end();
            need(made.type == Type::fp32 && found != all.end(), "an arg of kind attr is an fp32, an attr and a factor");
            made.source = static_cast<size_t>(found - all.begin());
            made.factor = factor(words[5]);
        } else if (words[3] == "int") {
            made.kind = Kind::number;
            need(made.type == Type::i32 || made.type == Type::i64, "an arg of kind int is an i32 or i64");
            made.code = code(words, 4);
        } else {
            need(words[3] == "null" && pointer && words.size() == 4,
                 "the kind of an arg is unknown, or does not go with its type");
        }
    }

    void cubin(const Words& words) {
        need(words.size() == 9, "a cubin has 9 words");
        Cubin made;
        made.target = target(words[0]);
        need(std::none_of(kernel.cubins.begin(), kernel.cubins.end(),
                          [&](const Cubin& c) { return c.target == made.target; }),
             "a target is there twice");
        made.file = plain(words[1], "a file is no plain name");
        made.bytes = integer(words[2], int64_t{1} << 30);
        made.registers = integer(words[5], 255);
        made.shared_bytes = integer(words[6], int64_t{1} << 20);
        made.warps = integer(words[7], 32);
        made.sha256 = digest(words[3], 64, "a SHA-256 is none");
        made.source = digest(words[4], 16, "a digest of sources is none");
        need(made.warps > 0, "there are no warps");
        made.entry = name(words[8]);
        kernel.cubins.push_back(std::move(made));
    }

    size_t stage_ = 0;
    size_t param_bytes_ = 0;
};

// ---- the file -------------------------------------------------------------------------------------------------------

Words split(std::string_view text, char at) {
    Words words;
    while (true) {
        const size_t end = text.find(at);
        words.push_back(text.substr(0, end));
        if (end == std::string_view::npos) return words;
        text.remove_prefix(end + 1);
    }
}

// All but the last line, which is compared with it.
std::string_view unsealed(std::string_view content) {
    constexpr size_t kSeal = 4 + 64 + 1;
    const size_t body = content.size() > kSeal ? content.size() - kSeal : 0;
    const std::string_view seal = content.substr(body);
    const bool there = body > 0 && content[body - 1] == '\n' && seal.substr(0, 4) == "end " && seal.back() == '\n' &&
                       std::all_of(seal.begin() + 4, seal.end() - 1, hex);
    if (!there) throw Error("the last line is not there: the file was cut short, or is no manifest of kernels");
    if (sha256(content.substr(0, body)) != seal.substr(4, 64))
        throw Error("the digest in the last line is another: the file was changed after it was written");
    const auto text = [](char c) { return c == '\n' || (c >= 0x20 && c <= 0x7e); };
    if (!std::all_of(content.begin(), content.begin() + static_cast<std::ptrdiff_t>(body), text))
        throw Error("the file has bytes that are no text");
    return content.substr(0, body - 1);
}

constexpr std::array<std::string_view, 8> kOrder = {"kernel", "attr", "in", "out", "require", "grid", "arg", "cubin"};

void take_line(const Words& words, std::vector<Draft>& drafts) {
    const auto at = static_cast<size_t>(std::find(kOrder.begin(), kOrder.end(), words[0]) - kOrder.begin());
    need(at < kOrder.size(), "a line begins with an unknown word");
    if (at > 0) {
        need(!drafts.empty(), "a line stands before the first kernel");
        drafts.back().take(at, Words(words.begin() + 1, words.end()));
        return;
    }
    need(words.size() == 3, "a kernel has an op and a case");
    Draft made(name(words[1]), plain(words[2], "a case is no plain name"));
    if (!drafts.empty()) drafts.back().close();
    const auto twin = [&](const Draft& d) {
        return d.kernel.op == made.kernel.op && d.kernel.case_ == made.kernel.case_;
    };
    need(std::none_of(drafts.begin(), drafts.end(), twin), "a kernel is there twice");
    drafts.push_back(std::move(made));
}

void check_magic(const Words& words) {
    need(words.size() == 2 && words[0] == "glimt-kernels", "the file does not begin with 'glimt-kernels'");
    need(words[1] == "1", "the format is another than 1, which this version reads");
}

}  // namespace

size_t Kernel::shape_of_output(size_t index) const {
    size_t input = 0;
    while (!same(tensors[input].axes, tensors[inputs + index].axes))
        ++input;
    return input;
}

Manifest parse(std::string_view content) {
    const Words lines = split(unsealed(content), '\n');
    std::vector<Draft> drafts;
    size_t number = 0;
    try {
        for (const std::string_view line : lines) {
            const Words words = split(line, ' ');
            ++number;
            if (number == 1)
                check_magic(words);
            else if (number == 2)
                need(words.size() > 1 && words[0] == "compiler" &&
                         std::none_of(words.begin(), words.end(), [](std::string_view w) { return w.empty(); }),
                     "the second line must name the compiler");
            else
                take_line(words, drafts);
        }
        need(lines.size() > 1, "the second line must name the compiler");
        if (!drafts.empty()) drafts.back().close();
    } catch (const Wrong& wrong) {
        throw Error("line " + std::to_string(number) + ": " + wrong.says);
    }
    Manifest made{std::string(lines[1].substr(9)), sha256(content), {}};
    for (Draft& draft : drafts)
        made.kernels.push_back(std::move(draft.kernel));
    return made;
}

}  // namespace glimt::manifest
