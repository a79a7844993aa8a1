// GPU kernels of the operations: the launchers of kernels.h. See *_op.h for the checks and *_op.cc for the
// meaning.

#include <algorithm>
#include <cstdint>

#include "filter_noise_bias_act_op.h"
#include "fused_bias_act_op.h"
#include "kernels.h"
#include "tensorflow/core/platform/stream_executor.h"
#include "upfirdn_2d_op.h"

namespace {

using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::errors::Internal;
using tensorflow::errors::InvalidArgument;

#ifdef STYLEGAN_CUDA_ON_CPU  // To check the kernels where there is no GPU: in place of those of the CPU.
const char* const kDevice = tensorflow::DEVICE_CPU;
constexpr int kPriority = 1;
void* stream_of(OpKernelContext*) { return nullptr; }
#else
const char* const kDevice = tensorflow::DEVICE_GPU;
constexpr int kPriority = 0;
void* stream_of(OpKernelContext* ctx) {
  return ctx->op_device_context()->stream()->platform_specific_handle().stream;
}
#endif

template <typename T>
constexpr int kDType = STYLEGAN_FLOAT32;
template <>
constexpr int kDType<double> = STYLEGAN_FLOAT64;
template <>
constexpr int kDType<Eigen::half> = STYLEGAN_FLOAT16;
template <>
constexpr int kDType<Eigen::bfloat16> = STYLEGAN_BFLOAT16;

// Reports what a launcher returns.
void report(OpKernelContext* ctx, const char* error) {
  if (error != nullptr) ctx->CtxFailure(Internal("GPU kernel: ", error));
}

template <typename T>
class GpuFusedBiasActOp : public stylegan::FusedBiasActOp {
 public:
  using FusedBiasActOp::FusedBiasActOp;

 protected:
  void run(OpKernelContext* ctx, const stylegan::BiasActArgs& args) const override {
    const StyleganFusedBiasAct gpu_args = {args.x, args.b, args.ref, args.y, args.size, args.bias_size,
                                           args.bias_step, act_, grad_, kDType<T>, args.alpha, args.gain};
    report(ctx, stylegan_fused_bias_act_gpu(&gpu_args, stream_of(ctx)));
  }
};

// Runs the launcher with the workspace that it asks for.
void run_gradient(OpKernelContext* ctx, StyleganNoiseBiasActGrad args) {
  const tensorflow::TensorShape size({stylegan_noise_bias_act_grad_workspace(&args)});
  Tensor workspace;
  OP_REQUIRES_OK(ctx, ctx->allocate_temp(tensorflow::DT_INT8, size, &workspace));
  args.workspace = workspace.data();
  report(ctx, stylegan_noise_bias_act_grad_gpu(&args, stream_of(ctx)));
}

template <typename T>
class GpuFusedBiasActSumsOp : public stylegan::FusedBiasActSumsOp {
 public:
  using FusedBiasActSumsOp::FusedBiasActSumsOp;

 protected:
  void run(OpKernelContext* ctx, const stylegan::BiasActArgs& args, Tensor* db) const override {
    OP_REQUIRES(ctx, args.bias_step == 1 && act_ <= stylegan::kLrelu,
                InvalidArgument("on a GPU axis must be the last one and act 1, 2 or 3, received ", axis_,
                                " and ", act_));
    StyleganNoiseBiasActGrad gpu_args = {};
    gpu_args.v = args.x;
    gpu_args.ref = args.ref;
    gpu_args.dx = args.y;
    gpu_args.dbias = db->data();
    gpu_args.major = 1;
    gpu_args.pixels = args.size / std::max<int64_t>(args.bias_size, 1);
    gpu_args.minor = args.bias_size;
    gpu_args.act = act_;
    gpu_args.dtype = kDType<T>;
    gpu_args.alpha = args.alpha;
    gpu_args.gain = args.gain;
    run_gradient(ctx, gpu_args);
  }
};

// Failure: InvalidArgument for filters that are too large.
tensorflow::Status to_gpu(const stylegan::UpFirDnArgs& args, int dtype, StyleganUpFirDn2D* gpu) {
  if (args.kh * args.kw > STYLEGAN_MAX_TAPS) {
    return InvalidArgument("k may have ", int{STYLEGAN_MAX_TAPS}, " taps on a GPU, received ", args.kh, " x ",
                           args.kw);
  }
  *gpu = {};
  gpu->x = args.x;
  gpu->y = args.y;
  std::copy_n(args.k, args.kh * args.kw, gpu->k);
  gpu->kh = args.kh;
  gpu->kw = args.kw;
  gpu->upx = args.upx;
  gpu->upy = args.upy;
  gpu->downx = args.downx;
  gpu->downy = args.downy;
  gpu->padx0 = args.padx0;
  gpu->pady0 = args.pady0;
  gpu->major = args.major;
  gpu->in_h = args.in_h;
  gpu->in_w = args.in_w;
  gpu->minor = args.minor;
  gpu->out_h = args.out_h;
  gpu->out_w = args.out_w;
  gpu->dtype = dtype;
  return tensorflow::OkStatus();
}

template <typename T>
class GpuUpFirDn2DOp : public stylegan::UpFirDn2DOp {
 public:
  using UpFirDn2DOp::UpFirDn2DOp;

 protected:
  void run(OpKernelContext* ctx, const stylegan::UpFirDnArgs& args) const override {
    StyleganUpFirDn2D gpu_args;
    OP_REQUIRES_OK(ctx, to_gpu(args, kDType<T>, &gpu_args));
    report(ctx, stylegan_upfirdn_2d_gpu(&gpu_args, stream_of(ctx)));
  }
};

template <typename T>
class GpuFilterNoiseBiasActOp : public stylegan::FilterNoiseBiasActOp {
 public:
  using FilterNoiseBiasActOp::FilterNoiseBiasActOp;

 protected:
  void run(OpKernelContext* ctx, const stylegan::EpilogueArgs& args,
           const stylegan::UpFirDnArgs& filter) const override {
    StyleganFilterNoiseBiasAct gpu_args = {};
    OP_REQUIRES_OK(ctx, to_gpu(filter, kDType<T>, &gpu_args.filter));
    gpu_args.factor = args.factor;
    gpu_args.noise = args.noise;
    gpu_args.bias = args.bias;
    gpu_args.ref = args.ref;
    gpu_args.noise_major = args.noise_major;
    gpu_args.act = args.act;
    gpu_args.grad = args.grad;
    gpu_args.alpha = args.alpha;
    gpu_args.gain = args.gain;
    report(ctx, stylegan_filter_noise_bias_act_gpu(&gpu_args, stream_of(ctx)));
  }
};

template <typename T>
class GpuFilterNoiseBiasActGradOp : public stylegan::FilterNoiseBiasActGradOp {
 public:
  using FilterNoiseBiasActGradOp::FilterNoiseBiasActGradOp;

 protected:
  void run(OpKernelContext* ctx, const stylegan::EpilogueGradArgs& args) const override {
    const bool filter = args.filter.kh > 0;
    StyleganNoiseBiasActGrad first = {};
    first.v = args.v;
    first.ref = args.epilogue.ref;
    first.dx = const_cast<void*>(args.filter.x);
    first.dnoise = args.dnoise->NumElements() > 0 ? args.dnoise->data() : nullptr;
    first.dbias = args.dbias->data();
    first.major = args.epilogue.major;
    first.pixels = args.epilogue.h * args.epilogue.w;
    first.minor = args.epilogue.minor;
    first.act = args.epilogue.act;
    first.dtype = kDType<T>;
    first.alpha = args.epilogue.alpha;
    first.gain = args.epilogue.gain;
    if (!filter) return run_gradient(ctx, with_factor(first, args));
    run_gradient(ctx, first);
    if (!ctx->status().ok()) return;
    StyleganUpFirDn2D filter_args;
    OP_REQUIRES_OK(ctx, to_gpu(args.filter, kDType<T>, &filter_args));
    report(ctx, stylegan_upfirdn_2d_gpu(&filter_args, stream_of(ctx)));
    if (!ctx->status().ok() || !has_factor(args)) return;
    StyleganNoiseBiasActGrad second = {};  // Of what has been filtered: only the factor is left.
    second.v = second.dx = args.dx->data();
    second.major = first.major;
    second.pixels = args.filter.out_h * args.filter.out_w;
    second.minor = first.minor;
    second.act = stylegan::kLinear;
    second.dtype = kDType<T>;
    second.gain = 1;
    run_gradient(ctx, with_factor(second, args));
  }

 private:
  static bool has_factor(const stylegan::EpilogueGradArgs& args) { return args.dfactor->NumElements() > 0; }

  static StyleganNoiseBiasActGrad with_factor(StyleganNoiseBiasActGrad gpu_args,
                                              const stylegan::EpilogueGradArgs& args) {
    if (!has_factor(args)) return gpu_args;
    gpu_args.x = args.x;
    gpu_args.factor = args.epilogue.factor;
    gpu_args.dfactor = args.dfactor->data();
    return gpu_args;
  }
};

#define REGISTER_ONE(name, host, Kernel, T)                                                               \
  REGISTER_KERNEL_BUILDER(                                                                                \
      Name(name).Device(kDevice).HostMemory(host).TypeConstraint<T>("T").Priority(kPriority), Kernel<T>)
#define REGISTER(T)                                                                                       \
  REGISTER_ONE("StyleganFusedBiasAct", "constants", GpuFusedBiasActOp, T);                                \
  REGISTER_ONE("StyleganFusedBiasActSums", "constants", GpuFusedBiasActSumsOp, T);                        \
  REGISTER_ONE("StyleganUpFirDn2D", "k", GpuUpFirDn2DOp, T);                                              \
  REGISTER_KERNEL_BUILDER(Name("StyleganFilterNoiseBiasAct")                                              \
                              .Device(kDevice)                                                            \
                              .HostMemory("k")                                                            \
                              .HostMemory("constants")                                                    \
                              .TypeConstraint<T>("T")                                                     \
                              .Priority(kPriority),                                                       \
                          GpuFilterNoiseBiasActOp<T>);                                                    \
  REGISTER_KERNEL_BUILDER(Name("StyleganFilterNoiseBiasActGrad")                                          \
                              .Device(kDevice)                                                            \
                              .HostMemory("k")                                                            \
                              .HostMemory("constants")                                                    \
                              .TypeConstraint<T>("T")                                                     \
                              .Priority(kPriority),                                                       \
                          GpuFilterNoiseBiasActGradOp<T>)
REGISTER(float);
REGISTER(double);
REGISTER(Eigen::half);
REGISTER(Eigen::bfloat16);
#undef REGISTER
#undef REGISTER_ONE

}  // namespace
