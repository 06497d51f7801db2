// The CPU sweeps of neuron.cpp over one block of elements. Included once for each instruction set, inside a namespace of its own; no
// include guard on purpose. Fused multiply-adds are left out (the AVX2 set does not imply them), so spikes and the gradient of the current have the same bits
// on every set; the sums for threshold and leak differ in the last ones, with the width of the vectors.

template <int64_t reset, typename S> inline S after_reset(S m, S th) {
  const S fired = m > th ? S(1) : S(0);
  return reset == kSoft ? m - th * fired : reset == kHard ? m * (S(1) - fired) : m;
}

template <int64_t reset, typename S>
void forward_block(const Shape& sh, const S* x, bool still, S th, S lk, const S* initial, S* spikes, S* before, S* after, int64_t at,
                   int64_t len) {
  const int64_t step = sh.step();
  S u[kBlock], m[kBlock];
  for (int64_t t = 0; t < sh.T; t++) {
    const S* xt = x + (still ? 0 : t * step) + at;
    S* st = spikes + t * step + at;
    if (t == 0 && initial) for (int64_t i = 0; i < len; i++) m[i] = lk * initial[at + i] + xt[i];
    else if (t == 0) for (int64_t i = 0; i < len; i++) m[i] = xt[i];
    else for (int64_t i = 0; i < len; i++) m[i] = lk * u[i] + xt[i];
    for (int64_t i = 0; i < len; i++) st[i] = m[i] > th ? S(1) : S(0);
    if (before) for (int64_t i = 0; i < len; i++) before[t * step + at + i] = m[i];
    if (t + 1 < sh.T || after) for (int64_t i = 0; i < len; i++) u[i] = after_reset<reset, S>(m[i], th);
    if (after) for (int64_t i = 0; i < len; i++) after[t * step + at + i] = u[i];
  }
}

// Adds the block's share of the gradients of threshold and leak to `sums`.
template <typename Sur, int64_t reset, typename S>
void backward_block(const Shape& sh, S a, S b, const S* m_all, const S* gs_all, S th, S lk, const S* initial, S* gx, bool still,
                    int64_t at, int64_t len, double* sums) {
  const int64_t step = sh.step();
  const S inv = S(1) / th;
  S gm[kBlock], sum[kBlock];
  for (int64_t t = sh.T - 1; t >= 0; t--) {
    const S* m = m_all + t * step + at;
    const S* gs = gs_all + t * step + at;
    const bool last = t == sh.T - 1;
    if (last) for (int64_t i = 0; i < len; i++) gm[i] = S(0);
    S row_theta = 0, row_leak = 0;
    #pragma omp simd reduction(+ : row_theta)
    for (int64_t i = 0; i < len; i++) {
      const S h = m[i] > th ? S(1) : S(0);
      const S gz = gs[i] * Sur::template grad<S>(m[i] * inv - S(1), a, b) * inv;
      const S gu = lk * gm[i];
      row_theta -= gz * m[i] * inv + (reset == kSoft ? gu * h : S(0));
      gm[i] = (reset == kHard ? gu * (S(1) - h) : gu) + gz;
    }
    if (t > 0) {
      const S* p = m_all + (t - 1) * step + at;
      #pragma omp simd reduction(+ : row_leak)
      for (int64_t i = 0; i < len; i++) row_leak += gm[i] * after_reset<reset, S>(p[i], th);
    } else if (initial) {
      for (int64_t i = 0; i < len; i++) row_leak += gm[i] * initial[at + i];
    }
    sums[0] += row_theta;
    sums[1] += row_leak;
    if (!still) for (int64_t i = 0; i < len; i++) gx[t * step + at + i] = gm[i];
    else if (last) for (int64_t i = 0; i < len; i++) sum[i] = gm[i];
    else for (int64_t i = 0; i < len; i++) sum[i] += gm[i];
  }
  if (still) for (int64_t i = 0; i < len; i++) gx[at + i] = sum[i];
}
