// Drives the CPU kernels over random sizes, without TensorFlow, to be compiled with sanitizers: they find what
// is read or written outside of an array. The results are compared with a plain loop. Exit status 0 = all well.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "../custom_ops/src/fused_bias_act_cpu.h"
#include "../custom_ops/src/upfirdn_2d_cpu.h"

namespace {

std::mt19937 rng(1);

int64_t uniform(int64_t least, int64_t greatest) {
  return std::uniform_int_distribution<int64_t>(least, greatest)(rng);
}

// Exactly as large as asked for, so that the sanitizer sees the first element behind it.
template <typename T>
std::vector<T> random_array(int64_t size) {
  std::vector<T> array(size);
  std::normal_distribution<float> normal;
  for (T& value : array) stylegan::store(normal(rng), &value);
  return array;
}

void expect_close(double actual, double expected, double tolerance, const char* what) {
  if (std::abs(actual - expected) <= tolerance * (1 + std::abs(expected))) return;
  std::fprintf(stderr, "%s: %g, expected %g\n", what, actual, expected);
  std::exit(1);
}

template <typename T>
void check_upfirdn(double tolerance) {
  stylegan::UpFirDnArgs a{};
  const int64_t channels[] = {1, 2, 3, 5, 8, 9, 16, 40, 300};
  a.major = uniform(1, 2);
  a.in_h = uniform(1, 8);
  a.in_w = uniform(0, 9) == 0 ? uniform(500, 3000) : uniform(1, 70);
  a.minor = channels[uniform(0, a.in_w > 100 ? 4 : 8)];
  a.kh = uniform(1, 7);
  a.kw = uniform(1, 7);
  a.upx = uniform(1, 3);
  a.upy = uniform(1, 3);
  a.downx = uniform(1, 3);
  a.downy = uniform(1, 3);
  a.padx0 = uniform(-5, 6);
  a.pady0 = uniform(-5, 6);
  const int64_t height = a.in_h * a.upy + a.pady0 + uniform(-5, 6) - a.kh;
  const int64_t width = a.in_w * a.upx + a.padx0 + uniform(-5, 6) - a.kw;
  if (height < 0 || width < 0) return;
  a.out_h = height / a.downy + 1;
  a.out_w = width / a.downx + 1;
  const std::vector<T> x = random_array<T>(a.major * a.in_h * a.in_w * a.minor);
  std::vector<T> y = random_array<T>(a.major * a.out_h * a.out_w * a.minor);
  std::vector<double> k = random_array<double>(a.kh * a.kw);
  if (uniform(0, 1)) {
    for (int64_t i = 0; i < a.kh * a.kw; ++i) k[i] = k[i / a.kw * a.kw] * (i % a.kw + 1);
  }
  a.x = x.data();
  a.k = k.data();
  a.y = y.data();
  const stylegan::UpFirDn2D<T> kernel(a);
  const int64_t rows = a.major * a.out_h, middle = uniform(0, rows);
  kernel.run(0, middle);
  kernel.run(middle, rows);
  for (int trial = 0; trial < 200; ++trial) {
    const int64_t n = uniform(0, a.major - 1), oy = uniform(0, a.out_h - 1), ox = uniform(0, a.out_w - 1);
    const int64_t c = uniform(0, a.minor - 1);
    double sum = 0, size = 0;
    for (int64_t i = 0; i < a.kh; ++i) {
      for (int64_t j = 0; j < a.kw; ++j) {
        const int64_t v = oy * a.downy + i - a.pady0, u = ox * a.downx + j - a.padx0;
        if (v < 0 || u < 0 || v % a.upy != 0 || u % a.upx != 0) continue;
        if (v / a.upy >= a.in_h || u / a.upx >= a.in_w) continue;
        const double term = k[(a.kh - 1 - i) * a.kw + a.kw - 1 - j] *
                            stylegan::load(x[((n * a.in_h + v / a.upy) * a.in_w + u / a.upx) * a.minor + c]);
        sum += term;
        size += std::abs(term);
      }
    }
    const double actual = stylegan::load(y[((n * a.out_h + oy) * a.out_w + ox) * a.minor + c]);
    expect_close(actual, sum, tolerance * (1 + size), "upfirdn_2d");
  }
}

template <typename T>
void check_bias_act(double tolerance) {
  const int64_t steps[] = {1, 1, 2, 9, 63, 64, 200};
  const int64_t step = steps[uniform(0, 6)], biases = uniform(0, 5) == 0 ? uniform(1000, 3000) : uniform(1, 40);
  const int64_t size = step * biases * (biases * step > 9999 ? 1 : uniform(1, 2000 / step + 1));
  const int act = uniform(1, 9), grad = uniform(0, 2);
  const bool bias = uniform(0, 1);
  std::vector<T> x = random_array<T>(size), y = random_array<T>(size), sums(biases);
  const std::vector<T> b = random_array<T>(biases), ref = random_array<T>(size);
  const double alpha = 0.25, gain = 2;
  const stylegan::BiasActArgs args{x.data(), bias ? b.data() : nullptr, ref.data(), y.data(), size, biases, step,
                                   alpha, gain};
  const stylegan::FusedBiasAct<T> kernel(args, act, grad);
  const int64_t middle = uniform(0, size);
  kernel.run_range(0, middle);
  kernel.run_range(middle, size);
  for (int64_t i = 0; act <= stylegan::kLrelu && i < size; ++i) {
    const double v = stylegan::load(x[i]) + (bias ? stylegan::load(b[i / step % biases]) : 0.0);
    const double at = grad == 0 ? v : stylegan::load(ref[i]);
    const double slope = at > 0 || act == stylegan::kLinear ? 1 : act == stylegan::kRelu ? 0 : alpha;
    expect_close(stylegan::load(y[i]), grad == 2 ? 0 : v * slope * gain, tolerance, "fused_bias_act");
  }

  stylegan::BiasActArgs sums_args = args;
  sums_args.b = nullptr;
  stylegan::FusedBiasActSums<T> with_sums(sums_args, act);
  for (int64_t part = 0; part < with_sums.parts(); ++part) with_sums.run_part(part);
  with_sums.finish(sums.data());
  std::vector<double> expected(biases), magnitude(biases);
  for (int64_t i = 0; i < size; ++i) {
    expected[i / step % biases] += stylegan::load(y[i]);
    magnitude[i / step % biases] += std::abs(stylegan::load(y[i]));
  }
  for (int64_t i = 0; i < biases; ++i) {
    expect_close(stylegan::load(sums[i]), expected[i], tolerance * (1 + magnitude[i]), "sums by bias");
  }
  // In place.
  const std::vector<T> separate = y;
  sums_args.y = x.data();
  stylegan::FusedBiasAct<T>(sums_args, act, 1).run_range(0, size);
  for (int64_t i = 0; i < size; ++i) {
    if (stylegan::load(x[i]) != stylegan::load(separate[i])) expect_close(1, 0, 0, "in place");
  }
}

// All numbers of 16 bits survive, and what lies between them is rounded to the nearest.
template <typename T>
void check_conversions() {
  for (int bits = 0; bits < 65536; ++bits) {
    const T value{static_cast<uint16_t>(bits)}, next{static_cast<uint16_t>(bits + 1)};
    const float number = stylegan::load(value), above = stylegan::load(next);
    T back, between;
    stylegan::store(number, &back);
    if (std::isnan(number)) {
      if (!std::isnan(stylegan::load(back))) expect_close(1, 0, 0, "nan");
      continue;
    }
    if (back.bits != value.bits) expect_close(back.bits, value.bits, 0, "conversion");
    if (!std::isfinite(number) || !std::isfinite(above) || bits % 32768 == 32767) continue;
    stylegan::store(number + (above - number) * 0.25f, &between);
    if (between.bits != value.bits) expect_close(between.bits, value.bits, 0, "rounding down");
    stylegan::store(number + (above - number) * 0.75f, &between);
    if (between.bits != next.bits) expect_close(between.bits, next.bits, 0, "rounding up");
    stylegan::store(number + (above - number) * 0.5f, &between);
    const uint16_t even = bits % 2 == 0 ? value.bits : next.bits;
    if (between.bits != even) expect_close(between.bits, even, 0, "rounding to even");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int count = argc > 1 ? std::atoi(argv[1]) : 100;
  check_conversions<stylegan::Half>();
  check_conversions<stylegan::BFloat16>();
  for (int i = 0; i < count; ++i) {
    check_upfirdn<float>(2e-6);
    check_upfirdn<double>(1e-14);
    check_upfirdn<stylegan::Half>(2e-3);
    check_upfirdn<stylegan::BFloat16>(1e-2);
    check_bias_act<float>(3e-6);
    check_bias_act<double>(1e-13);
    check_bias_act<stylegan::Half>(2e-3);
    check_bias_act<stylegan::BFloat16>(1e-2);
  }
  std::printf("checked\n");
  return 0;
}
