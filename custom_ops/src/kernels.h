// The CUDA kernels as seen from outside: a plain C interface, without a header of TensorFlow or CUDA.
//
// Pointers point to device memory. The kernels are put on `stream` (a
// cudaStream_t, NULL = the default stream) and not waited for. Each launcher returns NULL or the text of an
// error, in static memory; then nothing was launched. Empty tensors are no error.

#ifndef STYLEGAN_KERNELS_H_
#define STYLEGAN_KERNELS_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum StyleganDType { STYLEGAN_FLOAT32, STYLEGAN_FLOAT16, STYLEGAN_BFLOAT16, STYLEGAN_FLOAT64 };

enum { STYLEGAN_MAX_TAPS = 256 };

// With v = x + b, and act' and act'' the derivatives of the activation at ref:
//   grad = 0: y = act(v)·gain     grad = 1: y = v·act'·gain     grad = 2: y = v·act''·gain
// ref is the output y of grad = 0, gain included; for swish its argument v. It is read where grad > 0 and
// act > 1. The sums are made in float32 for the 16-bit types.
typedef struct StyleganFusedBiasAct {
  const void* x;
  const void* b;        // NULL = none.
  const void* ref;      // NULL where it is not read.
  void* y;              // May be x or ref.
  int64_t size;         // Elements of x, ref and y.
  int64_t bias_size;    // Element i has bias (i / bias_step) % bias_size.
  int64_t bias_step;
  int32_t act;          // 1 linear, 2 relu, 3 lrelu, 4 tanh, 5 sigmoid, 6 elu, 7 selu, 8 softplus, 9 swish.
  int32_t grad;
  int32_t dtype;        // A StyleganDType.
  double alpha;         // Slope of lrelu.
  double gain;
} StyleganFusedBiasAct;

const char* stylegan_fused_bias_act_gpu(const StyleganFusedBiasAct* args, void* stream);

// x [major, in_h, in_w, minor] → y [major, out_h, out_w, minor]: zeros are inserted behind each sample (up),
// pad0 zeros put in front (negative: samples cut off) and as many as needed behind, the result is convolved
// with k, and every down-th sample kept.
typedef struct StyleganUpFirDn2D {
  const void* x;
  void* y;              // Does not overlap x.
  double k[STYLEGAN_MAX_TAPS];  // The filter [kh, kw], not flipped: a true convolution flips it.
  int32_t kh, kw;
  int32_t upx, upy, downx, downy;
  int32_t padx0, pady0;
  int64_t major, in_h, in_w, minor, out_h, out_w;
  int32_t dtype;
} StyleganUpFirDn2D;

const char* stylegan_upfirdn_2d_gpu(const StyleganUpFirDn2D* args, void* stream);

// What follows a modulated convolution, in one pass over memory. With v = (x * k)·factor + noise + bias, *
// the convolution of upfirdn_2d and act one of linear, relu, lrelu:
//   grad = 0: y = act(v)·gain     grad = 1: y = v·act'·gain, act' taken at ref, the output of grad = 0
// Images are [major, out_h, out_w, minor] once they are filtered.
typedef struct StyleganFilterNoiseBiasAct {
  StyleganUpFirDn2D filter;  // Factors are 1. kh = 0: no filter, the sizes of x and y agree; y may be x then.
  const void* factor;   // [major, minor]. NULL = 1.
  const void* noise;    // [noise_major, out_h, out_w], noise_major = major or 1. NULL = 0.
  const void* bias;     // [minor]. NULL = 0.
  const void* ref;      // As y. NULL where it is not read: grad = 0 or act = 1.
  int64_t noise_major;
  int32_t act;          // 1 linear, 2 relu, 3 lrelu.
  int32_t grad;
  double alpha;         // Slope of lrelu.
  double gain;
} StyleganFilterNoiseBiasAct;

const char* stylegan_filter_noise_bias_act_gpu(const StyleganFilterNoiseBiasAct* args, void* stream);

// Its gradient but for the filter. With g = v·act'·gain, act' taken at ref, images [major, pixels, minor]:
//   dx = g·factor     dfactor = sums of g·x over pixels     dnoise = sums of g over channels
//   dbias = sums of g over images and pixels
// All sums are made in the same order in every run.
typedef struct StyleganNoiseBiasActGrad {
  const void* v;
  const void* x;        // NULL where dfactor is.
  const void* factor;   // [major, minor]. NULL = 1.
  const void* ref;      // As v. NULL where act = 1.
  void* dx;             // As v. May be v.
  void* dfactor;        // [major, minor]. NULL = not wanted, as the next two.
  void* dnoise;         // [major, pixels]
  void* dbias;          // [minor]
  void* workspace;      // As many bytes as stylegan_noise_bias_act_grad_workspace says, 16-byte aligned.
  int64_t major, pixels, minor;
  int32_t act;          // 1 linear, 2 relu, 3 lrelu.
  int32_t dtype;        // A StyleganDType.
  double alpha;         // Slope of lrelu.
  double gain;
} StyleganNoiseBiasActGrad;

// For arguments that are complete but for the workspace: the alignment of the pointers counts.
int64_t stylegan_noise_bias_act_grad_workspace(const StyleganNoiseBiasActGrad* args);
const char* stylegan_noise_bias_act_grad_gpu(const StyleganNoiseBiasActGrad* args, void* stream);

#ifdef __cplusplus
}
#endif

#endif  // STYLEGAN_KERNELS_H_
