// The words of a manifest's lines, and what each must look like.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace glimt::manifest {

using Words = std::vector<std::string_view>;

// What is wrong with a line; where it is, the caller knows.
struct Wrong {
    const char* says;
};

inline void need(bool holds, const char* otherwise) {
    if (!holds) throw Wrong{otherwise};
}

// ---- words ----------------------------------------------------------------------------------------------------------

inline bool digit(char c) {
    return c >= '0' && c <= '9';
}
inline bool upper(char c) {
    return c >= 'A' && c <= 'Z';
}
inline bool letter(char c) {
    return upper(c) || (c >= 'a' && c <= 'z');
}
inline bool hex(char c) {
    return digit(c) || (c >= 'a' && c <= 'f');
}

template <typename First, typename Rest>
inline bool made_of(std::string_view word, size_t most, First first, Rest rest) {
    return !word.empty() && word.size() <= most && first(word[0]) && std::all_of(word.begin() + 1, word.end(), rest);
}

inline std::string name(std::string_view word) {
    const auto first = [](char c) { return letter(c) || c == '_'; };
    need(made_of(word, 64, first, [&](char c) { return first(c) || digit(c); }), "a name is none");
    return std::string(word);
}

// Of cases and files: no path leads out of the folder.
inline std::string plain(std::string_view word, const char* otherwise) {
    const auto first = [](char c) { return letter(c) || digit(c); };
    const auto rest = [&](char c) { return first(c) || c == '.' || c == '_' || c == '-'; };
    need(made_of(word, 128, first, rest), otherwise);
    return std::string(word);
}

inline std::string digest(std::string_view word, size_t length, const char* otherwise) {
    need(word.size() == length && made_of(word, length, hex, hex), otherwise);
    return std::string(word);
}

inline int64_t integer(std::string_view word, int64_t most = INT64_MAX) {
    const bool written = made_of(word, 19, digit, digit) && (word.size() == 1 || word[0] != '0');
    need(written, "a whole number is not written as one");
    int64_t value = 0;
    const auto done = std::from_chars(word.data(), word.data() + word.size(), value);
    need(done.ec == std::errc() && value <= most, "a whole number is too large");
    return value;
}

inline double factor(std::string_view word) {
    const size_t point = word.find('.');
    const bool written = point != std::string_view::npos && made_of(word.substr(0, point), 17, digit, digit) &&
                         made_of(word.substr(point + 1), 17, digit, digit);
    need(written, "a factor is not written as 1.5");
    double value = 0;
    std::from_chars(word.data(), word.data() + word.size(), value);
    return value;
}

inline std::string target(std::string_view word) {
    std::string_view number = word.substr(0, 3) == "sm_" ? word.substr(3) : std::string_view();
    if (!number.empty() && number.back() == 'a') number.remove_suffix(1);
    const bool written = number.size() >= 2 && number[0] != '0' && made_of(number, 3, digit, digit);
    need(written, "a target is not written as sm_89");
    return std::string(word);
}

}  // namespace glimt::manifest
