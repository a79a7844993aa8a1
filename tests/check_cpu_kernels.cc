// Drives the CPU kernels over random sizes, without TensorFlow, to be compiled with sanitizers: they find what
// is read or written outside of an array. The results are compared with a plain loop. Exit status 0 = all well.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "../custom_ops/src/filter_noise_bias_act_cpu.h"
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

// What follows a modulated convolution, with and without a filter, and its gradient, which is the transpose:
// Σ v·y = Σ v·act'·gain·noise + Σ dbias·bias + Σ dx·x, as y is linear but for the slope.
template <typename T>
void check_epilogue(double tolerance) {
  const int64_t channels[] = {1, 3, 8, 15, 16, 17, 48, 300};
  const bool filter = uniform(0, 1), has_factor = uniform(0, 1), has_noise = uniform(0, 1), has_bias = uniform(0, 1);
  stylegan::EpilogueArgs e{};
  e.major = uniform(1, 3);
  e.noise_major = uniform(0, 1) ? 1 : e.major;
  e.h = uniform(1, 6);
  e.w = uniform(0, 9) == 0 ? uniform(100, 900) : uniform(1, 9);
  e.minor = channels[uniform(0, e.w > 99 ? 4 : 7)];
  e.act = uniform(1, 3);
  e.alpha = 0.25;
  e.gain = 2;
  stylegan::UpFirDnArgs f{};
  f.kh = uniform(1, 5);
  f.kw = uniform(1, 5);
  f.pady0 = uniform(-2, 4);
  f.padx0 = uniform(-2, 4);
  const int64_t in_h = filter ? e.h + f.kh - 1 - f.pady0 - uniform(-2, 2) : e.h;
  const int64_t in_w = filter ? e.w + f.kw - 1 - f.padx0 - uniform(-2, 2) : e.w;
  if (in_h < 1 || in_w < 1) return;
  const int64_t pixels = e.major * e.h * e.w, size = pixels * e.minor, in_size = e.major * in_h * in_w * e.minor;
  const std::vector<T> x = random_array<T>(in_size), factor = random_array<T>(e.major * e.minor);
  const std::vector<T> noise = random_array<T>(e.noise_major * e.h * e.w), bias = random_array<T>(e.minor);
  const std::vector<T> v = random_array<T>(size);
  const std::vector<double> k = random_array<double>(f.kh * f.kw), flipped(k.rbegin(), k.rend());
  std::vector<T> y(size), scaled(size), dx(in_size), dbias(e.minor), dfactor(e.major * e.minor);
  std::vector<T> dnoise(pixels);
  e.factor = has_factor ? factor.data() : nullptr;
  e.noise = has_noise ? noise.data() : nullptr;
  e.bias = has_bias ? bias.data() : nullptr;
  const int64_t rows = e.major * e.h, middle = uniform(0, rows);
  const stylegan::NoiseBiasAct<T> epilogue(e);
  f.major = e.major;
  f.minor = e.minor;
  f.upx = f.upy = f.downx = f.downy = 1;
  if (filter) {
    f.x = x.data();
    f.k = k.data();
    f.y = y.data();
    f.in_h = in_h;
    f.in_w = in_w;
    f.out_h = e.h;
    f.out_w = e.w;
    const stylegan::UpFirDn2D<T, stylegan::NoiseBiasAct<T>> kernel(f, epilogue);
    kernel.run(0, middle);
    kernel.run(middle, rows);
  } else {
    epilogue.run(x.data(), y.data(), 0, middle);
    epilogue.run(x.data(), y.data(), middle, rows);
  }

  e.ref = y.data();
  const bool in_filter = filter || !has_factor;
  stylegan::NoiseBiasActGrad<T> grad(e, v.data(), in_filter ? nullptr : x.data(), filter ? scaled.data() : dx.data(),
                                     has_noise ? dnoise.data() : nullptr);
  grad.run(0, middle);
  grad.run(middle, rows);
  grad.finish(dbias.data(), in_filter ? nullptr : dfactor.data());
  if (filter) {
    f.x = scaled.data();
    f.k = flipped.data();
    f.y = dx.data();
    f.pady0 = f.kh - f.pady0 - 1;
    f.padx0 = f.kw - f.padx0 - 1;
    std::swap(f.in_h, f.out_h);
    std::swap(f.in_w, f.out_w);
    stylegan::EpilogueArgs in = e;
    in.h = in_h;
    in.w = in_w;
    stylegan::RowSums<T> products(e.major * in_h, e.minor);
    if (has_factor) {
      const stylegan::FactorGrad<T> epilogue(in, x.data(), &products);
      stylegan::UpFirDn2D<T, stylegan::FactorGrad<T>>(f, epilogue).run(0, e.major * in_h);
      products.finish(e.major, dfactor.data());
    } else {
      stylegan::UpFirDn2D<T>(f).run(0, e.major * in_h);
    }
  }
  double left = 0, right = 0, by_factor = 0, magnitude = 0;
  const auto add = [&](double a, double b, double* sum) {
    *sum += a * b;
    magnitude += std::abs(a * b);
  };
  for (int64_t i = 0; i < size; ++i) add(stylegan::load(v[i]), stylegan::load(y[i]), &left);
  for (int64_t i = 0; i < in_size; ++i) add(stylegan::load(dx[i]), stylegan::load(x[i]), &right);
  for (int64_t i = 0; has_factor && i < e.major * e.minor; ++i) {
    add(stylegan::load(dfactor[i]), stylegan::load(factor[i]), &by_factor);
  }
  if (has_factor) expect_close(by_factor, right, tolerance * (1 + magnitude), "factor");
  for (int64_t i = 0; has_noise && i < pixels; ++i) {
    const int64_t at = e.noise_major == 1 ? i % (e.h * e.w) : i;
    add(stylegan::load(dnoise[i]), stylegan::load(noise[at]), &right);
  }
  for (int64_t i = 0; has_bias && i < e.minor; ++i) {
    add(stylegan::load(dbias[i]), stylegan::load(bias[i]), &right);
  }
  expect_close(left, right, tolerance * (1 + magnitude), "epilogue");

  // In place, and the derivative: where the output is positive, the same.
  e.grad = 1;
  if (filter) return;
  std::vector<T> again = x;
  stylegan::NoiseBiasAct<T>(e).run(again.data(), again.data(), 0, rows);
  for (int64_t i = 0; i < size; ++i) {
    const double actual = stylegan::load(again[i]), expected = stylegan::load(y[i]);
    if (expected != 0) expect_close(actual, expected, tolerance, "derivative");
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
    check_epilogue<float>(3e-6);
    check_epilogue<double>(1e-13);
    check_epilogue<stylegan::Half>(3e-3);
    check_epilogue<stylegan::BFloat16>(2e-2);
  }
  std::printf("checked\n");
  return 0;
}
