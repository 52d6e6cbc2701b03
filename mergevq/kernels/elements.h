// Elements of tensors in float32 and bfloat16, their sigmoid, and a guard for functions that C calls.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

struct Bfloat16 {
    uint16_t bits;
};

inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float load(float value) { return value; }
inline float load(Bfloat16 value) { return from_bits(uint32_t(value.bits) << 16); }
inline void store(float &at, float value) { at = value; }
inline void store(Bfloat16 &at, float value) { // to the nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    at.bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// exp(x), for x beyond -88 and 88 as there; NaN stays NaN. EXACT: to about two units in the last place of float32, by Cephes's polynomial;
// else, for what is rounded to bfloat16, by a shorter one to 4e-5 of it.
template <bool EXACT> inline float exponential(float x) {
    float bounded = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
    float whole = std::rint(bounded * 1.44269504088896341f);
    float rest = bounded - whole * 0.693359375f + whole * 2.12194440e-4f; // x = whole * ln 2 + rest
    float series;
    if (EXACT) {
        series = 1.9875691500e-4f;
        series = series * rest + 1.3981999507e-3f;
        series = series * rest + 8.3334519073e-3f;
        series = series * rest + 4.1665795894e-2f;
        series = series * rest + 1.6666665459e-1f;
        series = series * rest + 5.0000001201e-1f;
    } else {
        series = 4.1665795894e-2f;
        series = series * rest + 1.6666665459e-1f;
        series = series * rest + 5.0000001201e-1f;
    }
    series = series * rest * rest + rest + 1.0f;
    float power = series * from_bits(uint32_t(int32_t(whole) + 127) << 23);
    return x != x ? x : power;
}

// 1 / (1 + exp(-z)); where not EXACT, the reciprocal by Newton's steps from a guess by its exponent.
template <bool EXACT> inline float sigmoid(float z) {
    float below = 1.0f + exponential<EXACT>(-z);
    if (EXACT) return 1.0f / below;
    uint32_t bits;
    std::memcpy(&bits, &below, sizeof bits);
    float guess = from_bits(0x7ef311c7u - bits);
    guess *= 2.0f - below * guess;
    guess *= 2.0f - below * guess;
    guess *= 2.0f - below * guess;
    return z != z ? z : guess;
}

template <typename Work> int guarded(Work work) { // no exception leaves C++: 1 where memory is lacking
    try {
        work();
        return 0;
    } catch (...) {
        return 1;
    }
}
