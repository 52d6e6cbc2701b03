// Group norm, and group norm with SiLU, of channels-last maps on a CPU, forward and backward.
//
// A map is (batch, pixels, channels) in memory, float32 or bfloat16. Statistics are those of tiles, the float32 mean and
// then the float32 squares of deviations from it, merged in double as Chan, Golub and LeVeque 1983. Where sums are cut does
// not depend on the number of threads, so neither does any result. Both passes over an image follow each other, while the
// caches still hold it.

#include <algorithm>
#include <new>
#include <vector>

#include "elements.h"

namespace {

constexpr int64_t TILE = 64;       // pixels whose values stay in the nearest cache between two passes
constexpr int64_t MOST_SPANS = 32; // parts of an image that threads share

template <typename In, typename Out> constexpr bool exact() { return std::is_same_v<In, float> && std::is_same_v<Out, float>; }

// In loops of their own: a loop with sums over values of two widths is vectorised badly.
template <typename In> inline void widen(const In *__restrict from, float *__restrict to, int64_t count) {
#pragma omp simd
    for (int64_t c = 0; c < count; c++) to[c] = load(from[c]);
}

template <typename Out> inline void narrow(const float *__restrict from, Out *__restrict to, int64_t count) {
#pragma omp simd
    for (int64_t c = 0; c < count; c++) store(to[c], from[c]);
}

// A map's sizes, and how an image is cut: into spans of whole tiles.
struct Map {
    int64_t batch, pixels, channels, groups;

    int64_t tiles() const { return (pixels + TILE - 1) / TILE; }
    int64_t spans() const { return tiles() < MOST_SPANS ? tiles() : MOST_SPANS; }
    int64_t edge(int64_t span) const {
        int64_t at = tiles() * span / spans() * TILE;
        return at < pixels ? at : pixels;
    }
    int64_t width() const { return channels / groups; }
    double values() const { return double(pixels) * double(width()); } // of a group
};

// What is done to the values of each channel: normed = (value - mean) * rstd, z = normed * weight + bias.
struct Terms {
    float *mean, *rstd;         // (batch, groups)
    const float *weight, *bias; // (channels), or (batch, channels)
    int64_t stride;             // of weight and bias from image to image: 0, or channels
};

// `work(image, threads)` for every image, with the threads that are left to it: large images share all of them.
template <typename Work> void for_each_image(const Map &map, int threads, Work work) {
    if (map.spans() >= 2 * threads) {
        for (int64_t image = 0; image < map.batch; image++) work(image, threads);
        return;
    }
    bool failed = false; // an exception may not leave a parallel region
#pragma omp parallel for schedule(static) num_threads(threads) reduction(|| : failed)
    for (int64_t image = 0; image < map.batch; image++) failed = guarded([&] { work(image, 1); }) || failed;
    if (failed) throw std::bad_alloc();
}

// `work(span, first row, row after the last)` for every span of an image.
template <typename Work> void for_each_span(const Map &map, int threads, Work work) {
    bool failed = false;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) reduction(|| : failed)
    for (int64_t span = 0; span < map.spans(); span++)
        failed = guarded([&] { work(span, map.edge(span), map.edge(span + 1)); }) || failed;
    if (failed) throw std::bad_alloc();
}

// The values of an image's channels, of those of their groups.
std::vector<float> by_channel(const Map &map, const float *of_group) {
    std::vector<float> values(map.channels);
    for (int64_t c = 0; c < map.channels; c++) values[c] = of_group[c / map.width()];
    return values;
}

// Mean and reciprocal deviation of each group of one image.
template <typename In>
void statistics(const In *x, const Map &map, double eps, float *mean, float *rstd, int threads) {
    const int64_t channels = map.channels, spans = map.spans();
    std::vector<double> means(spans * channels), squares(spans * channels);
    for_each_span(map, threads, [&](int64_t span, int64_t first, int64_t last) {
        std::vector<float> scratch(2 * channels);
        float *__restrict middle = scratch.data(), *__restrict square = middle + channels;
        double *__restrict span_mean = &means[span * channels], *__restrict span_square = &squares[span * channels];
        for (int64_t tile = first; tile < last; tile += TILE) {
            const int64_t rows = last - tile < TILE ? last - tile : TILE;
            const In *__restrict values = x + tile * channels;
            std::fill(scratch.begin(), scratch.end(), 0.0f);
            for (int64_t row = 0; row < rows; row++)
#pragma omp simd
                for (int64_t c = 0; c < channels; c++) middle[c] += load(values[row * channels + c]);
            for (int64_t c = 0; c < channels; c++) middle[c] /= float(rows);
            for (int64_t row = 0; row < rows; row++)
#pragma omp simd
                for (int64_t c = 0; c < channels; c++) {
                    float deviation = load(values[row * channels + c]) - middle[c];
                    square[c] += deviation * deviation;
                }
            const double share = double(rows) / double(tile - first + rows), both = share * double(tile - first);
            for (int64_t c = 0; c < channels; c++) {
                double apart = double(middle[c]) - span_mean[c];
                span_mean[c] += apart * share;
                span_square[c] += square[c] + apart * apart * both;
            }
        }
    });
    for (int64_t group = 0; group < map.groups; group++) {
        auto average = [&](auto term) { // over the group's values, of a term of each span and channel
            double total = 0;
            for (int64_t span = 0; span < spans; span++)
                for (int64_t c = group * map.width(); c < (group + 1) * map.width(); c++)
                    total += term(span * channels + c, double(map.edge(span + 1) - map.edge(span)));
            return total / map.values();
        };
        const double middle = average([&](int64_t at, double count) { return count * means[at]; });
        const double variance = average([&](int64_t at, double count) {
            return squares[at] + count * (means[at] - middle) * (means[at] - middle);
        });
        mean[group] = float(middle);
        rstd[group] = float(1.0 / std::sqrt(variance + eps));
    }
}

template <bool SILU, typename In, typename Out>
void forward(const In *x, const Map &map, const Terms &terms, double eps, Out *out, int all_threads) {
    constexpr bool EXACT = exact<In, Out>();
    const int64_t channels = map.channels;
    for_each_image(map, all_threads, [&](int64_t image, int threads) {
        const In *inputs = x + image * map.pixels * channels;
        Out *outputs = out + image * map.pixels * channels;
        float *means = terms.mean + image * map.groups, *rstds = terms.rstd + image * map.groups;
        statistics(inputs, map, eps, means, rstds, threads);
        std::vector<float> middles = by_channel(map, means), scales = by_channel(map, rstds);
        for (int64_t c = 0; c < channels; c++) scales[c] *= terms.weight[image * terms.stride + c];
        for_each_span(map, threads, [&](int64_t, int64_t first, int64_t last) {
            const float *__restrict mean = middles.data(), *__restrict scale = scales.data();
            const float *__restrict bias = terms.bias + image * terms.stride;
            for (int64_t row = first; row < last; row++) {
                const In *__restrict values = inputs + row * channels;
                Out *__restrict results = outputs + row * channels;
#pragma omp simd
                for (int64_t c = 0; c < channels; c++) {
                    float z = (load(values[c]) - mean[c]) * scale[c] + bias[c];
                    store(results[c], SILU ? z * sigmoid<EXACT>(z) : z);
                }
            }
        });
    });
}

// The gradient of x; and, (2, batch, channels), the sums over pixels of dz, the gradient of z, and of dz times the normed value.
template <bool SILU, typename In, typename Out>
void backward(const In *x, const Out *grad, const Map &map, const Terms &terms, float *sums, In *out, int all_threads) {
    constexpr bool EXACT = exact<In, Out>();
    const int64_t channels = map.channels, spans = map.spans();
    for_each_image(map, all_threads, [&](int64_t image, int threads) {
        const int64_t start = image * map.pixels * channels;
        const std::vector<float> means = by_channel(map, terms.mean + image * map.groups);
        const std::vector<float> rstds = by_channel(map, terms.rstd + image * map.groups);
        const float *__restrict mean = means.data(), *__restrict rstd = rstds.data();
        const float *__restrict weight = terms.weight + image * terms.stride;
        const float *__restrict bias = terms.bias + image * terms.stride;
        std::vector<double> parts(2 * spans * channels);
        for_each_span(map, threads, [&](int64_t span, int64_t first_row, int64_t last_row) {
            std::vector<float> scratch(2 * channels), wide(2 * channels);
            float *__restrict first = scratch.data(), *__restrict second = first + channels;
            float *__restrict values = wide.data(), *__restrict grads = values + channels;
            double *totals = &parts[2 * span * channels];
            for (int64_t tile = first_row; tile < last_row; tile += TILE) {
                std::fill(scratch.begin(), scratch.end(), 0.0f);
                for (int64_t row = tile; row < last_row && row < tile + TILE; row++) {
                    const int64_t at = start + row * channels;
                    widen(x + at, values, channels);
                    widen(grad + at, grads, channels);
#pragma omp simd
                    for (int64_t c = 0; c < channels; c++) {
                        float normed = (values[c] - mean[c]) * rstd[c], dz = grads[c];
                        if (SILU) {
                            float z = normed * weight[c] + bias[c], s = sigmoid<EXACT>(z);
                            dz *= s * (1.0f + z * (1.0f - s));
                            grads[c] = dz;
                        }
                        first[c] += dz;
                        second[c] += dz * normed;
                    }
                    // For the second pass, in the type that the gradient has in the end.
                    if (SILU) narrow(grads, out + at, channels);
                }
                for (int64_t c = 0; c < 2 * channels; c++) totals[c] += scratch[c];
            }
        });
        std::vector<float> summed(2 * channels), middles(2 * channels);
        for (int64_t c = 0; c < 2 * channels; c++) {
            double total = 0;
            for (int64_t span = 0; span < spans; span++) total += parts[2 * span * channels + c];
            summed[c] = float(total);
            sums[(c / channels * map.batch + image) * channels + c % channels] = summed[c];
        }
        for (int64_t which = 0; which < 2; which++)
            for (int64_t group = 0; group < map.groups; group++) {
                double total = 0;
                const int64_t begin = group * map.width(), end = begin + map.width();
                for (int64_t c = begin; c < end; c++) total += double(summed[which * channels + c]) * weight[c];
                for (int64_t c = begin; c < end; c++) middles[which * channels + c] = float(total / map.values());
            }
        for_each_span(map, threads, [&](int64_t, int64_t first_row, int64_t last_row) {
            const float *__restrict first = middles.data(), *__restrict second = first + channels;
            for (int64_t row = first_row; row < last_row; row++) {
                const In *__restrict values = x + start + row * channels;
                const Out *__restrict grads = grad + start + row * channels;
                In *__restrict results = out + start + row * channels;
#pragma omp simd
                for (int64_t c = 0; c < channels; c++) {
                    float normed = (load(values[c]) - mean[c]) * rstd[c];
                    float dz = SILU ? load(results[c]) : load(grads[c]);
                    store(results[c], rstd[c] * (dz * weight[c] - first[c] - normed * second[c]));
                }
            }
        });
    });
}

// `call` with a value of each type: of whether SILU, of the input's and of the output's elements (0 float32, 1 bfloat16).
template <typename Call> void by_types(int silu, int in, int out, Call call) {
    auto by_output = [&](auto is_silu, auto input) {
        if (out) call(is_silu, input, Bfloat16{});
        else call(is_silu, input, float{});
    };
    auto by_input = [&](auto is_silu) {
        if (in) by_output(is_silu, Bfloat16{});
        else by_output(is_silu, float{});
    };
    if (silu) by_input(std::true_type{});
    else by_input(std::false_type{});
}

} // namespace

// Both return 0, or 1 where memory is lacking.
extern "C" int group_norm_forward(int silu, int in, int out, const void *x, const Map *map, const Terms *terms, double eps,
                                  void *result, int threads) {
    return guarded([&] {
        by_types(silu, in, out, [&](auto is_silu, auto input, auto output) {
            using In = decltype(input);
            using Out = decltype(output);
            forward<is_silu.value>(static_cast<const In *>(x), *map, *terms, eps, static_cast<Out *>(result), threads);
        });
    });
}

extern "C" int group_norm_backward(int silu, int in, int out, const void *x, const void *grad, const Map *map,
                                   const Terms *terms, float *sums, void *result, int threads) {
    return guarded([&] {
        by_types(silu, in, out, [&](auto is_silu, auto input, auto output) {
            using In = decltype(input);
            using Out = decltype(output);
            backward<is_silu.value>(static_cast<const In *>(x), static_cast<const Out *>(grad), *map, *terms, sums,
                                    static_cast<In *>(result), threads);
        });
    });
}
