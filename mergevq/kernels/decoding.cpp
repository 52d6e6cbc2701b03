// What a step of decoding does between its matrix products, on a CPU: root-mean-square norm, SwiGLU's product, and attention of few
// new tokens to a key-value cache. Rows are few, so that PyTorch's operations, each over in a moment, cost more to call than to do.

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "elements.h"

namespace {

constexpr int64_t LANES = 16; // sums side by side, which a compiler keeps in one register

template <typename T> inline float dot(const float *__restrict a, const T *__restrict b, int64_t width) {
    float sums[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES)
        for (int64_t lane = 0; lane < LANES; lane++) sums[lane] += a[i + lane] * load(b[i + lane]);
    float total = 0;
    for (; i < width; i++) total += a[i] * load(b[i]);
    for (int64_t lane = 0; lane < LANES; lane++) total += sums[lane];
    return total;
}

template <typename T, typename Weight>
void rms_norm(const T *x, const Weight *__restrict weight, T *out, int64_t rows, int64_t width, float eps) {
    for (int64_t row = 0; row < rows; row++) {
        const T *__restrict values = x + row * width;
        T *__restrict results = out + row * width;
        float square = 0;
#pragma omp simd reduction(+ : square)
        for (int64_t i = 0; i < width; i++) square += load(values[i]) * load(values[i]);
        const float factor = 1.0f / std::sqrt(square / float(width) + eps);
#pragma omp simd
        for (int64_t i = 0; i < width; i++) store(results[i], load(values[i]) * factor * load(weight[i]));
    }
}

template <typename T> void swiglu(const T *x, T *out, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++) {
        const T *__restrict gate = x + 2 * row * width, *__restrict up = gate + width;
        T *__restrict results = out + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            float z = load(gate[i]);
            store(results[i], z * sigmoid<std::is_same_v<T, float>>(z) * load(up[i]));
        }
    }
}

// Sizes and strides, in elements. Memory of queries, keys and values: (batch, tokens, 3, heads, width); of the cache: (batch, heads,
// slots, width). Rotations: (tokens, 2, width), slots: (tokens), masks: (tokens, visible), or one for each image where the stride is not 0.
struct Sizes {
    int64_t batch, tokens, heads, width, slots, visible;
    int64_t rotation_stride, slot_stride, mask_stride;
};

// x turned by its rotation: x * r0 + (x rolled by half) * r1.
template <typename T>
void rotated(const T *__restrict x, const float *__restrict rotation, float *__restrict out, int64_t width) {
    const int64_t half = width / 2;
    if (!rotation) {
        for (int64_t i = 0; i < width; i++) out[i] = load(x[i]);
        return;
    }
    for (int64_t i = 0; i < half; i++) {
        out[i] = load(x[i]) * rotation[i] + load(x[i + half]) * rotation[width + i];
        out[i + half] = load(x[i + half]) * rotation[half + i] + load(x[i]) * rotation[width + half + i];
    }
}

template <typename T>
void attend(const T *qkv, const float *rotation, T *keys, T *values, const int64_t *slots, const bool *mask, T *out,
            const Sizes &sizes, int threads) {
    const int64_t heads = sizes.heads, width = sizes.width, row = 3 * heads * width;
    const float scale = 1.0f / std::sqrt(float(width));
    for (int64_t image = 0; image < (sizes.slot_stride ? sizes.batch : 1); image++)
        for (int64_t token = 0; token < sizes.tokens; token++) {
            const int64_t slot = slots[image * sizes.slot_stride + token];
            if (slot < 0 || slot >= sizes.slots) throw std::out_of_range("slot");
        }
    const int64_t scratch = 2 * width + sizes.visible; // of a thread; an exception may not leave a parallel region
    std::vector<float> room(size_t(threads) * scratch);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t part = 0; part < sizes.batch * heads; part++) {
        const int64_t image = part / heads, head = part % heads;
        T *own_keys = keys + part * sizes.slots * width, *own_values = values + part * sizes.slots * width;
#ifdef _OPENMP
        float *turned = room.data() + size_t(omp_get_thread_num()) * scratch;
#else
        float *turned = room.data();
#endif
        float *__restrict sum = turned + width, *__restrict scores = sum + width;
        const T *tokens = qkv + image * sizes.tokens * row + head * width;
        auto turn = [&](int64_t token, int64_t which) {
            const float *by = rotation ? rotation + image * sizes.rotation_stride + token * 2 * width : nullptr;
            rotated(tokens + token * row + which * heads * width, by, turned, width);
        };
        for (int64_t token = 0; token < sizes.tokens; token++) { // all are written before any is read
            const int64_t slot = slots[image * sizes.slot_stride + token];
            turn(token, 1);
            for (int64_t i = 0; i < width; i++) store(own_keys[slot * width + i], turned[i]);
            std::memcpy(own_values + slot * width, tokens + token * row + 2 * heads * width, width * sizeof(T));
        }
        for (int64_t token = 0; token < sizes.tokens; token++) {
            turn(token, 0);
            for (int64_t i = 0; i < width; i++) { // as the cache's type holds it, then scaled
                T rounded;
                store(rounded, turned[i]);
                turned[i] = load(rounded) * scale;
            }
            const bool *seen = mask ? mask + image * sizes.mask_stride + token * sizes.visible : nullptr;
            float most = -std::numeric_limits<float>::infinity();
            for (int64_t slot = 0; slot < sizes.visible; slot++) {
                scores[slot] = !seen || seen[slot] ? dot(turned, own_keys + slot * width, width)
                                                   : -std::numeric_limits<float>::infinity();
                if (scores[slot] > most) most = scores[slot];
            }
            float total = 0;
#pragma omp simd reduction(+ : total)
            for (int64_t slot = 0; slot < sizes.visible; slot++) {
                // What is hidden has no share at all.
                const float share = scores[slot] < -1e30f ? 0.0f : exponential<true>(scores[slot] - most);
                scores[slot] = share;
                total += share;
            }
            std::fill(sum, sum + width, 0.0f);
            for (int64_t slot = 0; slot < sizes.visible; slot++) {
                const T *__restrict value = own_values + slot * width;
                const float share = scores[slot];
                if (share == 0.0f) continue; // what is hidden
#pragma omp simd
                for (int64_t i = 0; i < width; i++) sum[i] += share * load(value[i]);
            }
            T *result = out + ((image * sizes.tokens + token) * heads + head) * width;
            for (int64_t i = 0; i < width; i++) store(result[i], sum[i] / total);
        }
    }
}

// `call` with a value of the elements' type: 0 float32, 1 bfloat16.
template <typename Call> int by_type(int type, Call call) {
    return guarded([&] {
        if (type) call(Bfloat16{});
        else call(float{});
    });
}

} // namespace

// All return 0, or 1 where memory is lacking or a slot is none of the cache's. Rows (rows, width); weight (width), of their type or float32.
extern "C" int decoding_rms_norm(int type, int weight_type, const void *x, const void *weight, void *out, int64_t rows, int64_t width,
                                 double eps) {
    return by_type(type, [&](auto element) {
        using T = decltype(element);
        const T *values = static_cast<const T *>(x);
        T *results = static_cast<T *>(out);
        if (weight_type == type) rms_norm(values, static_cast<const T *>(weight), results, rows, width, float(eps));
        else rms_norm(values, static_cast<const float *>(weight), results, rows, width, float(eps));
    });
}

// (rows, 2 width), gate and up -> silu(gate) * up (rows, width).
extern "C" int decoding_swiglu(int type, const void *x, void *out, int64_t rows, int64_t width) {
    return by_type(type, [&](auto element) {
        using T = decltype(element);
        swiglu(static_cast<const T *>(x), static_cast<T *>(out), rows, width);
    });
}

// Write the rotated keys and the values to their slots; each token's attention to the visible ones -> (batch, tokens, heads, width).
extern "C" int decoding_attend(int type, const void *qkv, const float *rotation, void *keys, void *values, const int64_t *slots,
                               const bool *mask, void *out, const Sizes *sizes, int threads) {
    return by_type(type, [&](auto element) {
        using T = decltype(element);
        attend(static_cast<const T *>(qkv), rotation, static_cast<T *>(keys), static_cast<T *>(values), slots, mask,
               static_cast<T *>(out), *sizes, threads);
    });
}
