/* The passes of Attentive and of Batch Normalization over float32 or bfloat16 activations on a CPU.
 *
 * An activation's elements are of type "element", float or, compiled with -DBFLOAT16, the upper half
 * of one; all arithmetic is on floats, and so is everything smaller than an activation.
 *
 * Plain C with OpenMP and no header of torch, so it compiles in about a second and does not depend
 * on torch's version. An activation is dense, N x C x P (P = H*W); channels_last says whether the
 * channel or the pixel is the fastest index. Per-instance arrays are N x C. All sums have a fixed
 * order, so results do not depend on the number of threads.
 */
#include <math.h>
#include <stddef.h>

typedef ptrdiff_t idx;
#define INLINE static inline __attribute__((always_inline))
/* 64 x 64 floats stay in the first-level cache for a second look. */
enum { CHANNEL_BLOCK = 64, PIXEL_BLOCK = 64, AHEAD = 8 };
/* Threads meet in about the time that one needs for so many numbers. */
enum { SMALL = 8192 };

#ifdef BFLOAT16
typedef unsigned short element;
static inline float get(element e) {
  union { unsigned bits; float value; } u = {.bits = (unsigned)e << 16};
  return u.value;
}
/* Rounded to the nearest, to the even one of two; what is not a number stays none. */
static inline element put(float value) {
  union { float value; unsigned bits; } u = {.value = value};
  const unsigned rounded = (u.bits + 0x7fff + (u.bits >> 16 & 1)) >> 16;
  return (element)((u.bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}
#else
typedef float element;
static inline float get(element e) { return e; }
static inline element put(float value) { return value; }
#endif

static inline idx least(idx a, idx b) { return a < b ? a : b; }

/* With fewer instances than threads, pixels are divided where no sum runs over them. */
static inline idx pixel_bands(idx n, idx p, int threads) {
  return n >= threads ? 1 : least(p, threads);
}

/* Channels are taken in blocks of a constant width, which the compiler keeps in registers. */
#define EACH_WIDTH(body, rest, position) \
  if ((rest) >= CHANNEL_BLOCK) {         \
    body(CHANNEL_BLOCK);                 \
    position += CHANNEL_BLOCK;           \
  } else if ((rest) >= 32) {             \
    body(32);                            \
    position += 32;                      \
  } else if ((rest) >= 16) {             \
    body(16);                            \
    position += 16;                      \
  } else if ((rest) >= 8) {              \
    body(8);                             \
    position += 8;                       \
  } else {                               \
    body(1);                             \
    position += 1;                       \
  }

/* Blocks of channels are short pieces of memory far apart, which a processor does not foresee. */
INLINE void foresee(const element *row, const int width) {
  for (int k = 0; k < width; k += 64 / (int)sizeof(element)) __builtin_prefetch(row + k);
}

/* What follows the affine transformation: nothing, or what cuts below 0, or above 6 as well. What is
 * not a number stays none. */
enum { NONE, RELU, RELU6 };
static inline float limited(float value, const int act) {
  value = act != NONE && value < 0 ? 0 : value;
  return act == RELU6 && value > 6 ? 6 : value;
}

/* The gradient, or 0 where the value was cut. An argument is loaded in any case, which is what lets
 * the loops become vector instructions. */
static inline float uncut(float gradient, float value, const int act) {
  if (act == NONE) return gradient;
  if (act == RELU) return value <= 0 ? 0 : gradient;
  return ((value <= 0) | (value >= 6)) ? 0 : gradient;
}

/* The call with the activation as a constant, which leaves no branch in its loops. */
#define EACH_ACTIVATION(call)     \
  switch (act) {                  \
    case NONE: call(NONE); break; \
    case RELU: call(RELU); break; \
    default: call(RELU6);         \
  }

/* Threads share out instances; where these do not go round, blocks of their channels. */
static inline idx channel_width(idx n, idx c, int threads) {
  return n % threads == 0 || n >= 4 * threads ? c : least(c, CHANNEL_BLOCK);
}

/* Sixteen sums at once over a row that may start anywhere. Written out because a compiler that may
 * not reorder additions ends each such loop with sixteen of them one after the other. */
typedef float lanes __attribute__((vector_size(64), aligned(4), may_alias));
typedef int mask_lanes __attribute__((vector_size(64)));
enum { LANES = 16 };

#ifdef BFLOAT16
typedef unsigned short half_words __attribute__((vector_size(32), aligned(2), may_alias));
typedef unsigned words __attribute__((vector_size(64)));
static inline lanes get_lanes(const element *at) {
  return (lanes)(__builtin_convertvector(*(const half_words *)at, words) << 16);
}
#else
static inline lanes get_lanes(const element *at) { return *(const lanes *)at; }
#endif

static inline float lane_sum(lanes v) {
  typedef float half_lanes __attribute__((vector_size(32)));
  typedef float quarter_lanes __attribute__((vector_size(16)));
  union { lanes whole; half_lanes parts[2]; } a = {.whole = v};
  union { half_lanes whole; quarter_lanes parts[2]; } b = {.whole = a.parts[0] + a.parts[1]};
  const quarter_lanes c = b.parts[0] + b.parts[1];
  return (c[0] + c[1]) + (c[2] + c[3]);
}

/* The attention's matrices are small, so that what counts is how often they are loaded: sums of
 * several rows, or of several strips of sixteen columns, are in registers at once. */
#ifdef __AVX512F__
enum { ROWS = 5, STRIPS = 4 };
#else
enum { ROWS = 5, STRIPS = 1 };
#endif

/* out[t] = a . b[t], of ``count`` rows of b */
INLINE void dot_rows(const float *a, const float *b, float *out, idx c, const int count) {
  lanes sums[ROWS] = {{0}};
  float rests[ROWS] = {0};
  idx j = 0;
  for (; j + LANES <= c; j += LANES) {
    const lanes value = *(const lanes *)(a + j);
    for (int t = 0; t < count; t++) sums[t] += value * *(const lanes *)(b + t * c + j);
  }
  for (; j < c; j++)
    for (int t = 0; t < count; t++) rests[t] += a[j] * b[t * c + j];
  for (int t = 0; t < count; t++) out[t] = lane_sum(sums[t]) + rests[t];
}

static void dots(const float *a, const float *b, float *out, idx c, idx rows) {
  idx t = 0;
  for (; t + ROWS <= rows; t += ROWS) dot_rows(a, b + t * c, out + t, c, ROWS);
  for (; t < rows; t++) dot_rows(a, b + t * c, out + t, c, 1);
}

/* out[t] = sum over i of factors[i * step + t] * values[i], in columns of ``strips`` times sixteen;
 * rows of values and of out are c apart. */
INLINE void sum_strips(const float *factors, idx step, const float *values, float *out, idx c,
                       idx size, const int count, const int strips) {
  lanes sums[ROWS][STRIPS] = {{{0}}};
  for (idx i = 0; i < size; i++)
    for (int s = 0; s < strips; s++) {
      const lanes value = *(const lanes *)(values + i * c + s * LANES);
      for (int t = 0; t < count; t++) sums[t][s] += factors[i * step + t] * value;
    }
  for (int t = 0; t < count; t++)
    for (int s = 0; s < strips; s++) *(lanes *)(out + t * c + s * LANES) = sums[t][s];
}

INLINE void sum_columns(const float *factors, idx step, const float *values, float *out, idx c,
                        idx from, idx end, idx size, const int count) {
  idx j = from;
  for (; j + STRIPS * LANES <= end; j += STRIPS * LANES)
    sum_strips(factors, step, values + j, out + j, c, size, count, STRIPS);
  for (; j + LANES <= end; j += LANES)
    sum_strips(factors, step, values + j, out + j, c, size, count, 1);
  for (; j < end; j++)
    for (int t = 0; t < count; t++) {
      float sum = 0;
      for (idx i = 0; i < size; i++) sum += factors[i * step + t] * values[i * c + j];
      out[t * c + j] = sum;
    }
}

/* out (rows x c) = factors' (rows x size, rows of the untransposed are ``step`` long) values (size x
 * c), in the columns from ``from`` to ``end`` */
static void product(const float *factors, idx step, const float *values, float *out, idx c,
                    idx from, idx end, idx size, idx rows) {
  idx t = 0;
  for (; t + ROWS <= rows; t += ROWS)
    sum_columns(factors + t, step, values, out + t * c, c, from, end, size, ROWS);
  for (; t < rows; t++)
    sum_columns(factors + t, step, values, out + t * c, c, from, end, size, 1);
}

static inline void row_moments(const element *row, idx size, float *mean, float *var) {
  const idx whole = size / LANES * LANES;
  lanes sums = {0}, rests = {0}, squares = {0};
  float sum = 0, rest = 0, square = 0;
  for (idx p = 0; p < whole; p += LANES) sums += get_lanes(row + p);
  for (idx p = whole; p < size; p++) sum += get(row[p]);
  const float centre = (lane_sum(sums) + sum) / (float)size;
  /* The deviations' own sum is the rounding error of the first. */
  for (idx p = 0; p < whole; p += LANES) {
    const lanes d = get_lanes(row + p) - centre;
    rests += d;
    squares += d * d;
  }
  for (idx p = whole; p < size; p++) {
    const float d = get(row[p]) - centre;
    rest += d;
    square += d * d;
  }
  rest = (lane_sum(rests) + rest) / (float)size;
  const float v = (lane_sum(squares) + square) / (float)size - rest * rest;
  *mean = centre + rest;
  *var = v > 0 ? v : 0;
}

/* Blocks of pixels, each centred on its own mean, are merged as Chan et al. merge samples. */
INLINE void block_moments(const element *x, idx stride, idx size, float *restrict mean,
                          float *restrict var, const int width) {
  float m[CHANNEL_BLOCK], v[CHANNEL_BLOCK];
  for (idx begin = 0; begin < size; begin += PIXEL_BLOCK) {
    const idx count = least(PIXEL_BLOCK, size - begin);
    const element *rows = x + begin * stride;
    float sum[CHANNEL_BLOCK], squares[CHANNEL_BLOCK];
    for (int k = 0; k < width; k++) sum[k] = squares[k] = 0;
    for (idx p = 0; p < count; p++) {
      const element *restrict row = rows + p * stride;
      foresee(row + AHEAD * stride, width);
#pragma omp simd
      for (int k = 0; k < width; k++) sum[k] += get(row[k]);
    }
    for (int k = 0; k < width; k++) sum[k] /= (float)count;
    for (idx p = 0; p < count; p++) {
      const element *restrict row = rows + p * stride;
#pragma omp simd
      for (int k = 0; k < width; k++) {
        const float d = get(row[k]) - sum[k];
        squares[k] += d * d;
      }
    }
    if (begin == 0) {
      for (int k = 0; k < width; k++) m[k] = sum[k], v[k] = squares[k];
      continue;
    }
    const float share = (float)count / (float)(begin + count);
    for (int k = 0; k < width; k++) {
      const float d = sum[k] - m[k];
      m[k] += d * share;
      v[k] += squares[k] + d * d * share * (float)begin;
    }
  }
  for (int k = 0; k < width; k++) mean[k] = m[k], var[k] = v[k] / (float)size;
}

static void column_moments(const element *x, idx stride, idx width, idx size, float *mean,
                           float *var) {
  idx k = 0;
  while (k < width) {
#define COLUMNS(width) block_moments(x + k, stride, size, mean + k, var + k, width)
    EACH_WIDTH(COLUMNS, width - k, k)
#undef COLUMNS
  }
}

/* Of ``width`` channels of one instance, whose pixels x points to. */
static void moments(const element *x, float *mean, float *var, idx c, idx p, idx from, idx width,
                    int channels_last) {
  if (channels_last)
    column_moments(x + from, c, width, p, mean + from, var + from);
  else
    for (idx k = from; k < from + width; k++) row_moments(x + k * p, p, mean + k, var + k);
}

/* Of all instances, in blocks of so many channels. */
static void moments_of_all(const element *x, float *mean, float *var, idx n, idx c, idx p,
                           idx width, int channels_last, int threads) {
  const idx blocks = (c + width - 1) / width;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (idx task = 0; task < n * blocks; task++) {
    const idx i = task / blocks, from = task % blocks * width;
    moments(x + i * c * p, mean + i * c, var + i * c, c, p, from, least(width, c - from),
            channels_last);
  }
}

static inline element affine_of(element x, float centre, float scale, float shift,
                                const int act) {
  const float value = scale * (get(x) - centre) + shift;
  return put(limited(value, act));
}

/* y = gain * rstd * (x - centre) + offset, and the activation. Instances are taken
 * in the opposite order of the pass before, so its last ones are still in the cache. */
INLINE void apply_columns(const element *x, const float *gain, const float *offset,
                          const float *centre, const float *rstd, element *y, idx stride, idx size,
                          const int width, const int act) {
  float scale[CHANNEL_BLOCK], shift[CHANNEL_BLOCK], middle[CHANNEL_BLOCK];
  for (int k = 0; k < width; k++)
    scale[k] = gain[k] * rstd[k], shift[k] = offset[k], middle[k] = centre[k];
  for (idx j = 0; j < size; j++) {
    const element *restrict in = x + j * stride;
    element *restrict out = y + j * stride;
    foresee(in + AHEAD * stride, width);
#pragma omp simd
    for (int k = 0; k < width; k++) {
      out[k] = affine_of(in[k], middle[k], scale[k], shift[k], act);
    }
  }
}

/* The same, row by row: where a row is longer than a block of channels, memory in its order counts
 * for more than what stays in registers, as long as there are pixels enough for it. */
enum { ROW_CHANNELS = 4096, ROW_PIXELS = 32 };
static inline int by_rows(idx c, idx size) {
  return c > CHANNEL_BLOCK && c <= ROW_CHANNELS && size >= ROW_PIXELS;
}

INLINE void apply_rows(const element *x, const float *gain, const float *offset,
                       const float *centre, const float *rstd, element *y, idx c, idx size,
                       const int act) {
  float scale[ROW_CHANNELS];
  for (idx k = 0; k < c; k++) scale[k] = gain[k] * rstd[k];
  for (idx j = 0; j < size; j++) {
    const element *restrict in = x + j * c;
    element *restrict out = y + j * c;
#pragma omp simd
    for (idx k = 0; k < c; k++) {
      out[k] = affine_of(in[k], centre[k], scale[k], offset[k], act);
    }
  }
}

/* Gains and offsets of instances are ``step`` apart: c, or 0 where all instances share them. */
INLINE void apply_pass(const element *x, const float *gain, const float *offset, idx step,
                       const float *centre, const float *rstd, element *y, idx n, idx c, idx p,
                       int channels_last, const int act, int threads) {
  if (!channels_last) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (idx task = 0; task < n * c; task++) {
      const idx k = task % c, i = n - 1 - task / c, at = i * step + k;
      const float scale = gain[at] * rstd[k], shift = offset[at], m = centre[k];
      const element *restrict in = x + (i * c + k) * p;
      element *restrict out = y + (i * c + k) * p;
#pragma omp simd
      for (idx j = 0; j < p; j++) {
        out[j] = affine_of(in[j], m, scale, shift, act);
      }
    }
    return;
  }
  const idx bands = pixel_bands(n, p, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (idx task = 0; task < n * bands; task++) {
    const idx i = n - 1 - task / bands, band = task % bands;
    const idx begin = band * p / bands, end = (band + 1) * p / bands;
    if (by_rows(c, end - begin)) {
      const idx first = (i * p + begin) * c;
      apply_rows(x + first, gain + i * step, offset + i * step, centre, rstd, y + first, c,
                 end - begin, act);
      continue;
    }
    idx k = 0;
    while (k < c) {
      const idx pixel = (i * p + begin) * c + k, at = i * step + k;
#define COLUMNS(width)                                                                             \
  apply_columns(x + pixel, gain + at, offset + at, centre + k, rstd + k, y + pixel, c,             \
                end - begin, width, act)
      EACH_WIDTH(COLUMNS, c - k, k)
#undef COLUMNS
    }
  }
}

void attnorm_apply(const element *x, const float *affine, const float *centre, const float *rstd,
                   element *y, idx n, idx c, idx p, int channels_last, int act, int threads) {
#define APPLY(act) \
  apply_pass(x, affine, affine + n * c, c, centre, rstd, y, n, c, p, channels_last, act, threads)
  EACH_ACTIVATION(APPLY)
#undef APPLY
}

/* Sums over the pixels of an instance: of dy, dy * (x - centre) and x - centre; where the
 * activation cut the output, dy counts as 0. */
INLINE void reduce_columns(const element *dy, const element *x, const float *gain, const float *offset,
                           const float *centre, const float *rstd, float *first, float *second,
                           float *third, idx stride, idx size, const int width, const int act) {
  float scale[CHANNEL_BLOCK], shift[CHANNEL_BLOCK], middle[CHANNEL_BLOCK];
  float a[CHANNEL_BLOCK], b[CHANNEL_BLOCK], d[CHANNEL_BLOCK];
  for (int k = 0; k < width; k++) {
    scale[k] = gain[k] * rstd[k], shift[k] = offset[k], middle[k] = centre[k];
    a[k] = b[k] = d[k] = 0;
  }
  for (idx j = 0; j < size; j++) {
    const element *restrict in = x + j * stride, *restrict grad = dy + j * stride;
    foresee(in + AHEAD * stride, width), foresee(grad + AHEAD * stride, width);
#pragma omp simd
    for (int k = 0; k < width; k++) {
      const float from_centre = get(in[k]) - middle[k];
      const float g = uncut(get(grad[k]), scale[k] * from_centre + shift[k], act);
      a[k] += g;
      b[k] += g * from_centre;
      d[k] += from_centre;
    }
  }
  for (int k = 0; k < width; k++) first[k] = a[k], second[k] = b[k], third[k] = d[k];
}

INLINE void reduce_row(const element *dy, const element *x, float scale, float shift, float centre,
                       float *first, float *second, float *third, idx size, const int act) {
  const idx whole = size / LANES * LANES;
  lanes as = {0}, bs = {0}, ds = {0};
  float a = 0, b = 0, d = 0;
  for (idx j = 0; j < whole; j += LANES) {
    const lanes from_centre = get_lanes(x + j) - centre;
    lanes g = get_lanes(dy + j);
    const lanes value = scale * from_centre + shift;
    if (act != NONE) g = (lanes)((mask_lanes)g & ~(value <= 0));
    if (act == RELU6) g = (lanes)((mask_lanes)g & ~(value >= 6));
    as += g;
    bs += g * from_centre;
    ds += from_centre;
  }
  for (idx j = whole; j < size; j++) {
    const float from_centre = get(x[j]) - centre;
    const float g = uncut(get(dy[j]), scale * from_centre + shift, act);
    a += g;
    b += g * from_centre;
    d += from_centre;
  }
  *first = a + lane_sum(as), *second = b + lane_sum(bs), *third = d + lane_sum(ds);
}

/* The channels from ``from`` to ``end`` of one instance, whose pixels dy and x point to. */
INLINE void reduce(const element *dy, const element *x, const float *gain, const float *offset,
                   const float *centre, const float *rstd, float *first, float *second,
                   float *third, idx c, idx p, idx from, idx end, int channels_last,
                   const int act) {
  idx k = from;
  while (k < end) {
    if (!channels_last) {
      reduce_row(dy + k * p, x + k * p, gain[k] * rstd[k], offset[k], centre[k], first + k,
                 second + k, third + k, p, act);
      k++;
      continue;
    }
#define COLUMNS(width)                                                                        \
  reduce_columns(dy + k, x + k, gain + k, offset + k, centre + k, rstd + k, first + k,        \
                 second + k, third + k, c, p, width, act)
    EACH_WIDTH(COLUMNS, end - k, k)
#undef COLUMNS
  }
}

/* Of all instances, in blocks of so many channels; gains and offsets as in apply_pass. */
INLINE void reduce_all(const element *dy, const element *x, const float *gain, const float *offset,
                       idx step, const float *centre, const float *rstd, float *first,
                       float *second, float *third, idx n, idx c, idx p, idx width,
                       int channels_last, const int act, int threads) {
  const idx blocks = (c + width - 1) / width;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (idx task = 0; task < n * blocks; task++) {
    const idx i = task / blocks, from = task % blocks * width, at = i * c;
    reduce(dy + at * p, x + at * p, gain + i * step, offset + i * step, centre, rstd, first + at,
           second + at, third + at, c, p, from, least(c, from + width), channels_last, act);
  }
}

static inline element gradient_of(element dy, element x, float centre, float scale, float shift,
                                  float slope, float constant, const int act) {
  const float from_centre = get(x) - centre;
  const float g = uncut(get(dy), scale * from_centre + shift, act);
  return put(scale * g + (slope * from_centre + constant));
}

/* dx = gain * rstd * dy + slope * (x - centre) + shift, where the slope is of a channel and undoes
 * what the batch's variance moves, the shift is of an instance and holds what its mean moves. */
INLINE void gradient_columns(const element *dy, const element *x, const float *gain,
                             const float *offset, const float *centre, const float *rstd,
                             const float *dmean, const float *shifts, const float *slopes,
                             float share, element *dx, idx stride, idx size, const int width,
                             const int act) {
  float scale[CHANNEL_BLOCK], cut[CHANNEL_BLOCK], middle[CHANNEL_BLOCK];
  float incline[CHANNEL_BLOCK], constant[CHANNEL_BLOCK];
  for (int k = 0; k < width; k++) {
    scale[k] = gain[k] * rstd[k], cut[k] = offset[k], middle[k] = centre[k];
    incline[k] = -rstd[k] * rstd[k] * slopes[k];
    constant[k] = dmean[k] * share - rstd[k] * shifts[k];
  }
  for (idx j = 0; j < size; j++) {
    const element *restrict in = x + j * stride, *restrict grad = dy + j * stride;
    foresee(in + AHEAD * stride, width), foresee(grad + AHEAD * stride, width);
    element *restrict out = dx + j * stride;
#pragma omp simd
    for (int k = 0; k < width; k++) {
      out[k] = gradient_of(grad[k], in[k], middle[k], scale[k], cut[k], incline[k], constant[k], act);
    }
  }
}

INLINE void gradient_rows(const element *dy, const element *x, const float *gain,
                          const float *offset, const float *centre, const float *rstd,
                          const float *dmean, const float *shifts, const float *slopes,
                          float share, element *dx, idx c, idx size, const int act) {
  float scale[ROW_CHANNELS], incline[ROW_CHANNELS], constant[ROW_CHANNELS];
  for (idx k = 0; k < c; k++) {
    scale[k] = gain[k] * rstd[k];
    incline[k] = -rstd[k] * rstd[k] * slopes[k];
    constant[k] = dmean[k] * share - rstd[k] * shifts[k];
  }
  for (idx j = 0; j < size; j++) {
    const element *restrict in = x + j * c, *restrict grad = dy + j * c;
    element *restrict out = dx + j * c;
#pragma omp simd
    for (idx k = 0; k < c; k++) {
      out[k] = gradient_of(grad[k], in[k], centre[k], scale[k], offset[k], incline[k], constant[k],
                           act);
    }
  }
}

INLINE void gradient_pass(const element *dy, const element *x, const float *gain, const float *offset,
                          idx step, const float *centre, const float *rstd, const float *dmean,
                          const float *folded, element *dx, idx n, idx c, idx p,
                          int channels_last, const int act, int threads) {
  const float *slopes = folded + c, share = 1 / (float)p;
  if (!channels_last) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (idx task = 0; task < n * c; task++) {
      const idx k = task % c, i = n - 1 - task / c, at = i * step + k;
      const float scale = gain[at] * rstd[k], b = offset[at], m = centre[k];
      const float e = -rstd[k] * rstd[k] * slopes[k];
      const float constant = dmean[at] * share - rstd[k] * folded[k];
      const element *restrict in = x + (i * c + k) * p, *restrict grad = dy + (i * c + k) * p;
      element *restrict out = dx + (i * c + k) * p;
#pragma omp simd
      for (idx j = 0; j < p; j++) {
        out[j] = gradient_of(grad[j], in[j], m, scale, b, e, constant, act);
      }
    }
    return;
  }
  const idx bands = pixel_bands(n, p, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (idx task = 0; task < n * bands; task++) {
    const idx i = n - 1 - task / bands, band = task % bands;
    const idx begin = band * p / bands, end = (band + 1) * p / bands;
    if (by_rows(c, end - begin)) {
      const idx first = (i * p + begin) * c;
      gradient_rows(dy + first, x + first, gain + i * step, offset + i * step, centre, rstd,
                    dmean + i * step, folded, slopes, share, dx + first, c, end - begin, act);
      continue;
    }
    idx k = 0;
    while (k < c) {
      const idx pixel = (i * p + begin) * c + k, at = i * step + k;
#define COLUMNS(width)                                                                             \
  gradient_columns(dy + pixel, x + pixel, gain + at, offset + at, centre + k, rstd + k,            \
                   dmean + at, folded + k, slopes + k, share, dx + pixel, c, end - begin, width,   \
                   act)
      EACH_WIDTH(COLUMNS, c - k, k)
#undef COLUMNS
    }
  }
}

void attnorm_gradient(const element *dy, const element *x, const float *affine, const float *centre,
                      const float *rstd, const float *dmean, const float *folded, element *dx,
                      idx n, idx c, idx p, int channels_last, int act, int threads) {
#define GRADIENT(act)                                                                            \
  gradient_pass(dy, x, affine, affine + n * c, c, centre, rstd, dmean, folded, dx, n, c, p,      \
                channels_last, act, threads)
  EACH_ACTIVATION(GRADIENT)
#undef GRADIENT
}

/* gain = lambda gamma, offset = lambda beta, of one instance. With rows = 2k outputs the first k
 * weigh the scales and the others the offsets, with rows = k all weigh both. */
static void affine_row(const float *lambda, const float *gamma, const float *beta, float *gain,
                       float *offset, idx c, idx k, idx rows) {
  product(lambda, 1, gamma, gain, c, 0, c, k, 1);
  product(lambda + rows - k, 1, beta, offset, c, 0, c, k, 1);
}

/* lambda = sigmoid(mean W' + b) of one instance */
static void attention_row(const float *mean, const float *weight, const float *bias, float *lambda,
                          idx c, idx rows) {
  dots(mean, weight, lambda, c, rows);
  for (idx t = 0; t < rows; t++) lambda[t] = 1 / (1 + expf(-(lambda[t] + bias[t])));
}

/* Channel statistics of the batch from per-instance moments over p pixels each. */
static void statistics(const float *mean, const float *var, float *centre, float *unbiased,
                       float *rstd, idx n, idx c, idx p, idx from, idx end, float eps) {
  const float count = (float)(n * p), correction = count > 1 ? count / (count - 1) : 1;
  for (idx j = from; j < end; j++) centre[j] = unbiased[j] = 0;
  for (idx i = 0; i < n; i++)
#pragma omp simd
    for (idx j = from; j < end; j++) centre[j] += mean[i * c + j] - mean[j];
  for (idx j = from; j < end; j++) centre[j] = mean[j] + centre[j] / (float)n;
  for (idx i = 0; i < n; i++)
#pragma omp simd
    for (idx j = from; j < end; j++) {
      const float d = mean[i * c + j] - centre[j];
      unbiased[j] += var[i * c + j] + d * d;
    }
  for (idx j = from; j < end; j++) {
    const float biased = unbiased[j] / (float)n;
    rstd[j] = 1 / sqrtf(biased + eps);
    unbiased[j] = biased * correction;
  }
}

static void statistics_of_all(const float *mean, const float *var, float *centre, float *unbiased,
                              float *rstd, idx n, idx c, idx p, int threads, float eps) {
  const idx parts = (c + CHANNEL_BLOCK - 1) / CHANNEL_BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static) if (n * c > SMALL)
  for (idx part = 0; part < parts; part++) {
    const idx from = part * CHANNEL_BLOCK, end = least(c, from + CHANNEL_BLOCK);
    statistics(mean, var, centre, unbiased, rstd, n, c, p, from, end, eps);
  }
}

/* Running statistics, which may be 0. */
static void move(float *running, const float *newest, idx c, float momentum) {
  if (running)
    for (idx j = 0; j < c; j++) running[j] += momentum * (newest[j] - running[j]);
}

/* One instance's gradients of its logits and of its mean. Of reduce's sums, those of dy * (x -
 * centre) become those of dy * xhat and those of x - centre become the mean. */
static void head_backward_row(const float *dy, float *moment, float *rest, const float *lambda,
                              const float *gamma, const float *beta, const float *weight,
                              const float *centre, const float *rstd, float *dz, float *dmean,
                              idx c, idx p, idx k, idx rows) {
  const float share = 1 / (float)p;
  const idx split = rows - k;
#pragma omp simd
  for (idx j = 0; j < c; j++) {
    moment[j] *= rstd[j];
    rest[j] = centre[j] + rest[j] * share;
  }
  dots(moment, gamma, dz, c, k);
  if (split)
    dots(dy, beta, dz + split, c, k);
  else
    for (idx t = 0; t < k; t += ROWS) {
      float some[ROWS];
      const idx count = least(ROWS, k - t);
      dots(dy, beta + t * c, some, c, count);
      for (idx r = 0; r < count; r++) dz[t + r] += some[r];
    }
  for (idx t = 0; t < rows; t++) dz[t] *= lambda[t] * (1 - lambda[t]);
  product(dz, 1, weight, dmean, c, 0, c, rows, 1);
}

/* All that a forward pass needs to know before it can write y. scratch: 2 x N x C. */
void attnorm_prepare(const element *x, const float *gamma, const float *beta, const float *weight,
                     const float *bias, float *lambda, float *affine, float *centre,
                     float *unbiased, float *rstd, float *scratch, idx n, idx c, idx p, idx k,
                     idx rows, int channels_last, int threads, float eps) {
  float *mean = scratch, *var = scratch + n * c;
  const idx width = channel_width(n, c, threads), blocks = (c + width - 1) / width;
  if (blocks > 1) moments_of_all(x, mean, var, n, c, p, width, channels_last, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (idx i = 0; i < n; i++) {
    if (blocks == 1) moments(x + i * c * p, mean + i * c, var + i * c, c, p, 0, c, channels_last);
    attention_row(mean + i * c, weight, bias, lambda + i * rows, c, rows);
    affine_row(lambda + i * rows, gamma, beta, affine + i * c, affine + (n + i) * c, c, k, rows);
  }
  statistics_of_all(mean, var, centre, unbiased, rstd, n, c, p, threads, eps);
}

INLINE void collect(const element *dy, const element *x, const float *lambda, const float *gamma,
                    const float *beta, const float *weight, const float *centre, const float *rstd,
                    float *affine, float *dmean, float *scratch, idx n, idx c, idx p, idx k,
                    idx rows, int channels_last, int threads, const int act) {
  float *first = scratch, *second = first + n * c, *third = second + n * c, *dz = third + n * c;
  const idx width = channel_width(n, c, threads), blocks = (c + width - 1) / width;
  if (blocks > 1) {
    for (idx i = 0; i < n; i++)
      affine_row(lambda + i * rows, gamma, beta, affine + i * c, affine + (n + i) * c, c, k, rows);
    reduce_all(dy, x, affine, affine + n * c, c, centre, rstd, first, second, third, n, c, p, width,
               channels_last, act, threads);
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (idx i = 0; i < n; i++) {
    const idx at = i * c;
    if (blocks == 1) {
      affine_row(lambda + i * rows, gamma, beta, affine + at, affine + n * c + at, c, k, rows);
      reduce(dy + at * p, x + at * p, affine + at, affine + n * c + at, centre, rstd, first + at,
             second + at, third + at, c, p, 0, c, channels_last, act);
    }
    head_backward_row(first + at, second + at, third + at, lambda + i * rows, gamma, beta, weight,
                      centre, rstd, dz + i * rows, dmean + at, c, p, k, rows);
  }
}

/* All that a backward pass needs to know before it can write dx. folded: the two C-long means over
 * the batch of gain * dy and gain * dy * xhat. scratch: 3 x N x C, N x R. */
void attnorm_collect(const element *dy, const element *x, const float *lambda, const float *gamma,
                     const float *beta, const float *weight, const float *centre,
                     const float *rstd, float *dgamma, float *dbeta, float *dweight, float *dbias,
                     float *affine, float *dmean, float *folded, float *scratch, idx n, idx c,
                     idx p, idx k, idx rows, int channels_last, int threads, int act) {
#define COLLECT(act)                                                                            \
  collect(dy, x, lambda, gamma, beta, weight, centre, rstd, affine, dmean, scratch, n, c, p, k,   \
          rows, channels_last, threads, act)
  EACH_ACTIVATION(COLLECT)
#undef COLLECT
  const float *first = scratch, *second = first + n * c, *mean = second + n * c;
  const float *dz = mean + n * c;
  const idx blocks = (c + CHANNEL_BLOCK - 1) / CHANNEL_BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (idx block = 0; block < blocks; block++) {
    const idx from = block * CHANNEL_BLOCK, end = least(c, from + CHANNEL_BLOCK);
    product(lambda, rows, second, dgamma, c, from, end, n, k);
    product(lambda + rows - k, rows, first, dbeta, c, from, end, n, k);
    product(dz, rows, mean, dweight, c, from, end, n, rows);
    for (idx j = from; j < end; j++) folded[j] = folded[c + j] = 0;
    for (idx i = 0; i < n; i++)
#pragma omp simd
      for (idx j = from; j < end; j++) {
        folded[j] += affine[i * c + j] * first[i * c + j];
        folded[c + j] += affine[i * c + j] * second[i * c + j];
      }
    for (idx j = from; j < end; j++) folded[j] /= (float)(n * p), folded[c + j] /= (float)(n * p);
  }
  for (idx t = 0; t < rows; t++) dbias[t] = 0;
  for (idx i = 0; i < n; i++)
    for (idx t = 0; t < rows; t++) dbias[t] += dz[i * rows + t];
}

/* A layer's whole training step, in two calls. small, which is kept in between: lambda, centre, rstd.
 * running_mean, running_var and batches may be 0. scratch: 4 x N x C, C. */
void attnorm_train_forward(const element *x, const float *gamma, const float *beta,
                           const float *weight, const float *bias, float *small, float *scratch,
                           float *running_mean, float *running_var, long long *batches, element *y,
                           idx n, idx c, idx p, idx k, idx rows, int channels_last, int act,
                           int threads, float eps, float momentum) {
  if (batches) ++*batches;
  float *centre = small + n * rows, *rstd = centre + c;
  float *affine = scratch, *moments = affine + 2 * n * c, *unbiased = moments + 2 * n * c;
  attnorm_prepare(x, gamma, beta, weight, bias, small, affine, centre, unbiased, rstd, moments, n, c,
                  p, k, rows, channels_last, threads, eps);
  move(running_mean, centre, c, momentum);
  move(running_var, unbiased, c, momentum);
  attnorm_apply(x, affine, centre, rstd, y, n, c, p, channels_last, act, threads);
}

/* dx may be 0. scratch: 6 x N x C, 2 x C, N x R. */
void attnorm_train_backward(const element *dy, const element *x, const float *gamma,
                            const float *beta, const float *weight, const float *small,
                            float *dgamma, float *dbeta, float *dweight, float *dbias,
                            float *scratch, element *dx, idx n, idx c, idx p, idx k, idx rows,
                            int channels_last, int act, int threads) {
  const float *centre = small + n * rows, *rstd = centre + c;
  float *affine = scratch, *dmean = affine + 2 * n * c, *folded = dmean + n * c;
  attnorm_collect(dy, x, small, gamma, beta, weight, centre, rstd, dgamma, dbeta, dweight, dbias,
                  affine, dmean, folded, folded + 2 * c, n, c, p, k, rows, channels_last, threads,
                  act);
  if (dx)
    attnorm_gradient(dy, x, affine, centre, rstd, dmean, folded, dx, n, c, p, channels_last, act,
                     threads);
}

/* Batch normalization knows of no instances. Where pixels lie one after the other, those of several
 * small ones are taken as one's: shorter arrays, longer loops. Not by the number of threads, on which
 * no sum may depend. */
static void regroup(idx *n, idx *p, int channels_last) {
  if (channels_last)
    while (*n % 2 == 0 && *n > 8 && *p < PIXEL_BLOCK) *n /= 2, *p *= 2;
}

/* A training step of batch normalization, by the same passes. small: centre, rstd. batches may be 0.
 * scratch: 2 x N x C, C. */
void attnorm_batch_forward(const element *x, const float *gamma, const float *beta, float *small,
                           float *scratch, float *running_mean, float *running_var,
                           long long *batches, element *y, idx n, idx c, idx p, int channels_last,
                           int act, int threads, float eps, float momentum) {
  if (batches) ++*batches;
  regroup(&n, &p, channels_last);
  float *centre = small, *rstd = centre + c;
  float *mean = scratch, *var = mean + n * c, *unbiased = var + n * c;
  moments_of_all(x, mean, var, n, c, p, channel_width(n, c, threads), channels_last, threads);
  statistics_of_all(mean, var, centre, unbiased, rstd, n, c, p, threads, eps);
  move(running_mean, centre, c, momentum);
  move(running_var, unbiased, c, momentum);
#define APPLY(act) \
  apply_pass(x, gamma, beta, 0, centre, rstd, y, n, c, p, channels_last, act, threads)
  EACH_ACTIVATION(APPLY)
#undef APPLY
}

/* dx may be 0. scratch: 3 x N x C, 3 x C. */
void attnorm_batch_backward(const element *dy, const element *x, const float *gamma,
                            const float *beta, const float *small, float *dgamma, float *dbeta,
                            float *scratch, element *dx, idx n, idx c, idx p, int channels_last,
                            int act, int threads) {
  regroup(&n, &p, channels_last);
  const float *centre = small, *rstd = centre + c, share = 1 / (float)(n * p);
  float *first = scratch, *second = first + n * c, *third = second + n * c;
  float *dmean = third + n * c, *folded = dmean + c;
  const idx width = channel_width(n, c, threads);
#define SUMS(act)                                                                                \
  reduce_all(dy, x, gamma, beta, 0, centre, rstd, first, second, third, n, c, p, width,          \
             channels_last, act, threads)
  EACH_ACTIVATION(SUMS)
#undef SUMS
  for (idx j = 0; j < c; j++) dbeta[j] = dgamma[j] = dmean[j] = 0;
  for (idx i = 0; i < n; i++)
#pragma omp simd
    for (idx j = 0; j < c; j++) {
      dbeta[j] += first[i * c + j];
      dgamma[j] += second[i * c + j];
    }
  for (idx j = 0; j < c; j++) {
    dgamma[j] *= rstd[j];
    folded[j] = gamma[j] * dbeta[j] * share;
    folded[c + j] = gamma[j] * dgamma[j] * share;
  }
  if (!dx) return;
#define GRADIENT(act)                                                                            \
  gradient_pass(dy, x, gamma, beta, 0, centre, rstd, dmean, folded, dx, n, c, p, channels_last,  \
                act, threads)
  EACH_ACTIVATION(GRADIENT)
#undef GRADIENT
}
