/* Fused row statistics of attention: one sweep over a tile of whole rows that sits in cache.
 *
 * tile    rows x stride logits; becomes normalised attention, zero from limit[i] to cols
 * limit   how many keys row i may see (causal); 0 gives a row of zeros
 * sink    logit of a learned sink per row, or NULL
 * lse     log-normaliser per row
 * entropy sum of p log(1/p) per row, or NULL
 * best    position of the largest weight, first one wins, or NULL; weight: its attention
 */
#include <math.h>
#include <stdint.h>

#define LANES 16

static inline float fast_exp(float x) {
    /* exp for x <= 0: 2^n * p(f), Cephes polynomial, relative error below 2e-7; below -87 it is zero */
    const float clamped = x < -87.0f ? -87.0f : x;
    const float n = floorf(clamped * 1.44269504088896341f + 0.5f);
    const float f = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    union { int32_t i; float f; } power;
    power.i = ((int32_t)n + 127) << 23;
    return x < -87.0f ? 0.0f : p * power.f;
}

static void one_row(float *s, int64_t cols, int64_t n, float sink, float *lse, float *entropy, int64_t *best,
                    float *weight) {
    float lanes[LANES];
    for (int j = 0; j < LANES; j++) lanes[j] = -INFINITY;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lanes[j] = lanes[j] < s[i + j] ? s[i + j] : lanes[j];
    float top = -INFINITY;
    for (int j = 0; j < LANES; j++) top = top < lanes[j] ? lanes[j] : top;
    for (; i < n; i++) top = top < s[i] ? s[i] : top;

    if (best) {
        int64_t found = -1;
        if (top > -INFINITY)
            for (found = 0; found < n && s[found] != top; found++) {}
        *best = found;
    }
    const float shift = top < sink ? sink : top;
    if (!(shift > -INFINITY)) {
        /* comparisons skip NaN, so a row of nothing but NaN ends here too, and must stay visible */
        float value = 0.0f;
        for (i = 0; i < n; i++)
            if (s[i] != s[i]) value = NAN;
        for (i = 0; i < cols; i++) s[i] = i < n ? value : 0.0f;
        *lse = value == 0.0f ? -INFINITY : value;
        if (entropy) *entropy = value;
        if (weight) *weight = value;
        return;
    }
    /* sums in LANES partial sums, each short enough for float; the partial sums add up in double */
    float total[LANES] = {0}, moment[LANES] = {0};
    double sum = sink > -INFINITY ? (double)expf(sink - shift) : 0.0, first = 0.0;
    for (i = 0; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            const float x = s[i + j] - shift;
            const float p = fast_exp(x);
            s[i + j] = p;
            total[j] += p;
            moment[j] += p * (x < -87.0f ? -87.0f : x);
        }
    for (int j = 0; j < LANES; j++) { sum += total[j]; first += moment[j]; }
    for (; i < n; i++) {
        const float x = s[i] - shift;
        const float p = fast_exp(x);
        s[i] = p;
        sum += p;
        first += p * (x < -87.0f ? -87.0f : x);
    }
    const double norm = log(sum);
    *lse = (float)(shift + norm);
    double mass = sum;
    if (sink > -INFINITY) mass -= (double)expf(sink - shift);
    if (entropy) *entropy = (float)((norm * mass - first) / sum);
    if (weight) *weight = (float)(expf(top - shift) / sum);
    const float inverse = (float)(1.0 / sum);
    for (i = 0; i < n; i++) s[i] *= inverse;
    for (i = n; i < cols; i++) s[i] = 0.0f;
}

void headscope_rows(float *tile, int64_t rows, int64_t cols, int64_t stride, const int64_t *limit, const float *sink,
                    float *lse, float *entropy, int64_t *best, float *weight, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (int64_t r = 0; r < rows; r++)
        one_row(tile + r * stride, cols, limit[r], sink ? sink[r] : -INFINITY, lse + r, entropy ? entropy + r : 0,
                best ? best + r : 0, weight ? weight + r : 0);
}

/* columns[g, j] += sum over the g-th run of rows/groups rows of tile[., j]; each thread owns a range of columns */
void headscope_columns(const float *tile, int64_t rows, int64_t cols, int64_t stride, int64_t groups, double *columns,
                       int64_t column_stride, int threads) {
    const int64_t run = rows / groups, width = 512, blocks = (cols + width - 1) / width;
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int64_t g = 0; g < groups; g++)
        for (int64_t b = 0; b < blocks; b++) {
            float partial[512] = {0};
            const int64_t start = b * width, count = start + width > cols ? cols - start : width;
            for (int64_t r = g * run; r < (g + 1) * run; r++) {
                const float *row = tile + r * stride + start;
                for (int64_t j = 0; j < count; j++) partial[j] += row[j];
            }
            double *out = columns + g * column_stride + start;
            for (int64_t j = 0; j < count; j++) out[j] += partial[j];
        }
}

/* The group of each key is a byte: one array for each run of ``run`` rows (a head), ``group_stride`` bytes apart, or one
 * array for all of them where that is 0. */

enum { SHAPE = -2, HIDE, SCALE, FLOOR, TRANSFER, REDISTRIBUTE };
#define GROUPS 16

static int renormalise(float *weights, const double *masses, float *other, int32_t count) {
    double total = other ? *other : 0.0;
    for (int32_t g = 0; g < count; g++) total += weights[g] * masses[g];
    if (!(total > 0.0)) return 0;
    for (int32_t g = 0; g < count; g++) weights[g] = (float)(weights[g] / total);
    if (other) *other = (float)(*other / total);
    return 1;
}

/* weights of groups from their masses, as rules.py gives them; returns 0 where the row stays as it is */
static int weights_of(const float *rule, const double *masses, float *other, int32_t count, float *weights) {
    for (int32_t g = 0; g < count; g++) weights[g] = rule[0] == SCALE ? rule[1 + g] : 1.0f;
    if (rule[0] == SCALE) return renormalise(weights, masses, other, count);
    if (rule[0] == FLOOR) {
        if (!(masses[1] > 0.0 && masses[1] < rule[1])) return 0;
        weights[1] = (float)(rule[1] / masses[1]);
        return renormalise(weights, masses, other, count);
    }
    if (rule[0] == TRANSFER) {
        const double takes = 1.0 + (1.0 - rule[1]) * masses[1] / masses[0];
        if (!(masses[0] > 0.0 && takes >= 0.0)) return 0;
        weights[0] = (float)takes;
        weights[1] = rule[1];
        return 1;
    }
    const double total = masses[2] + masses[3];
    if (!(masses[2] > 0.0 && masses[3] > 0.0 && total >= rule[3] && masses[2] <= rule[2] * total)) return 0;
    weights[1] = weights[2] = rule[1];
    weights[3] = (float)(1.0 + (1.0 - rule[1]) * (masses[1] + masses[2]) / masses[3]);
    return 1;
}

static void reweigh_row(float *s, int64_t cols, const uint8_t *of, int32_t count, const float *rule, float *other) {
    double masses[GROUPS];
    float weights[GROUPS];
    for (int32_t g = 0; g < count; g++) {
        /* 0 or 1 as a factor: GCC 12 loses terms of a sum whose condition is on narrower integers */
        float lanes[LANES] = {0};
        int64_t i = 0;
        for (; i + LANES <= cols; i += LANES)
            for (int j = 0; j < LANES; j++) lanes[j] += s[i + j] * (float)((int32_t)of[i + j] == g);
        masses[g] = 0.0;
        for (int j = 0; j < LANES; j++) masses[g] += lanes[j];
        for (; i < cols; i++) masses[g] += s[i] * (float)((int32_t)of[i] == g);
    }
    if (!weights_of(rule, masses, other, count, weights)) return;
    int64_t i = 0;
    for (; i + LANES <= cols; i += LANES) {
        float lanes[LANES];
        for (int j = 0; j < LANES; j++) lanes[j] = weights[0];
        for (int32_t g = 1; g < count; g++)
            for (int j = 0; j < LANES; j++) lanes[j] = (int32_t)of[i + j] == g ? weights[g] : lanes[j];
        for (int j = 0; j < LANES; j++) s[i + j] *= lanes[j];
    }
    for (; i < cols; i++) s[i] *= weights[of[i]];
}

/* A rule changes the attention of each row, by what the row puts on each of count groups of keys.
 *
 * rule    which one, and its numbers
 * edit    whether a row is changed, or NULL for all of them
 * other   what a learned sink takes of each row, before and after, or NULL
 */
void headscope_reweigh(float *tile, int64_t rows, int64_t cols, int64_t stride, const uint8_t *group,
                       int64_t group_stride, int64_t run, int64_t count, const float *rule, const uint8_t *edit,
                       float *other, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        if (!edit || edit[r])
            reweigh_row(tile + r * stride, cols, group + r / run * group_stride, (int32_t)count, rule,
                        other ? other + r : 0);
}

static void hide_row(float *s, int64_t n, const uint8_t *of) {
    int64_t other = 0;
    while (other < n && (of[other] || !(s[other] > -INFINITY))) other++;
    for (int64_t i = 0; i < n && other < n; i++) s[i] = of[i] ? -INFINITY : s[i];
}

/* Logits of group 1 become -inf in rows that are edited and see another key. */
void headscope_hide(float *tile, int64_t rows, int64_t stride, const int64_t *limit, const uint8_t *group,
                    int64_t group_stride, int64_t run, const uint8_t *edit, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        if (!edit || edit[r]) hide_row(tile + r * stride, limit[r], group + r / run * group_stride);
}

typedef struct {
    const float *start;
    int64_t batch, head, row; /* strides in floats */
} lines;

enum { KEYS = 256, WIDE = 32 }; /* what one thread takes at a time of keys, and of the width of values */

static void logits_of(const float *q, const float *k, int64_t k_row, int64_t keys, int64_t width, float scale, float *s) {
    for (int64_t i = 0; i < keys; i++, k += k_row) {
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < width; d++) sum += q[d] * k[d];
        s[i] = scale * sum;
    }
}

/* summed in runs that are short enough for float */
static void values_of(const float *s, const float *v, int64_t v_row, int64_t keys, int64_t wide, float *out) {
    for (int64_t j = 0; j < wide; j++) out[j] = 0.0f;
    for (int64_t start = 0; start < keys; start += 128) {
        const int64_t stop = start + 128 < keys ? start + 128 : keys;
        float part[WIDE] = {0};
        for (int64_t i = start; i < stop; i++)
            for (int64_t j = 0; j < wide; j++) part[j] += s[i] * v[i * v_row + j];
        for (int64_t j = 0; j < wide; j++) out[j] += part[j];
    }
}

/* Edited heads of a decoding step, one query each, with keys and values where they lie.
 *
 * heads   which query heads, n of them; ``share`` of all heads share a key head
 * mask    whether a key may be seen, a byte for each, ``mask_batch`` bytes between samples, or NULL
 * group   of each key, a byte for each
 * rule    HIDE, SHAPE with temperature, bias and boost, or a rule of weights
 * tile    room for batch x n x keys
 * out     batch x n x wide
 */
void headscope_step(const lines *q, const lines *k, const lines *v, const int64_t *heads, int64_t n, int64_t share,
                    int64_t batch, int64_t keys, int64_t width, int64_t wide, float scale, const uint8_t *mask,
                    int64_t mask_batch, const uint8_t *group, int64_t group_batch, int64_t group_head, int64_t count,
                    const float *rule, float *tile, float *out, int threads) {
    const int64_t rows = batch * n, blocks = (keys + KEYS - 1) / KEYS, parts = (wide + WIDE - 1) / WIDE;
#pragma omp parallel num_threads(threads) if (rows * keys * width > 1 << 20) /* less is not worth a wait */
    {
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < rows * blocks; unit++) {
            const int64_t r = unit / blocks, b = r / n, h = heads[r % n], start = unit % blocks * KEYS;
            const float *key = k->start + b * k->batch + h / share * k->head + start * k->row;
            logits_of(q->start + b * q->batch + h * q->head, key, k->row, keys - start < KEYS ? keys - start : KEYS, width,
                      scale, tile + r * keys + start);
        }
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            const uint8_t *of = group + r / n * group_batch + heads[r % n] * group_head;
            float *s = tile + r * keys, lse;
            if (rule[0] == SHAPE)
                for (int64_t i = 0; i < keys; i++) {
                    s[i] /= rule[1];
                    s[i] += of[i] ? rule[2] + rule[3] * fabsf(s[i]) : 0.0f;
                }
            if (mask)
                for (int64_t i = 0; i < keys; i++) s[i] = mask[r / n * mask_batch + i] ? s[i] : -INFINITY;
            if (rule[0] == HIDE) hide_row(s, keys, of);
            one_row(s, keys, keys, -INFINITY, &lse, 0, 0, 0);
            if (rule[0] >= 0) reweigh_row(s, keys, of, (int32_t)count, rule, 0);
        }
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < rows * parts; unit++) {
            const int64_t r = unit / parts, h = heads[r % n], start = unit % parts * WIDE;
            values_of(tile + r * keys, v->start + r / n * v->batch + h / share * v->head + start, v->row, keys,
                      wide - start < WIDE ? wide - start : WIDE, out + r * wide + start);
        }
    }
}
