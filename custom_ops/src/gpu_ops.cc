// GPU kernels of StyleganFusedBiasAct and StyleganUpFirDn2D: the checks of the CPU kernels, then a launcher.
// See fused_bias_act_op.cc and upfirdn_2d_op.cc for the operations; StyleganFusedBiasActSums has no GPU
// kernel.
//
// Eager mode does not call shape functions: what protects memory is checked when the operation runs.

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "kernels.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/platform/stream_executor.h"

namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::Internal;
using tensorflow::errors::InvalidArgument;

constexpr int kLinear = 1, kSwish = 9;
constexpr int64_t kMaxTaps = 32;                // Of the filter, along each axis.
constexpr int64_t kMaxFactor = 1 << 10;
constexpr int64_t kMaxSize = int64_t{1} << 30;  // Of pads and of images, also upsampled.

template <typename T>
constexpr int kDType = STYLEGAN_FLOAT32;
template <>
constexpr int kDType<double> = STYLEGAN_FLOAT64;
template <>
constexpr int kDType<Eigen::half> = STYLEGAN_FLOAT16;
template <>
constexpr int kDType<Eigen::bfloat16> = STYLEGAN_BFLOAT16;

void* stream_of(OpKernelContext* ctx) {
  return ctx->op_device_context()->stream()->platform_specific_handle().stream;
}

template <typename T>
class FusedBiasActGpuOp : public OpKernel {
 public:
  explicit FusedBiasActGpuOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("axis", &axis_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("act", &act_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("grad", &grad_));
    OP_REQUIRES(ctx, act_ >= kLinear && act_ <= kSwish,
                InvalidArgument("act must be 1 to 9, received ", act_));
    OP_REQUIRES(ctx, grad_ >= 0 && grad_ <= 2, InvalidArgument("grad must be 0, 1 or 2, received ", grad_));
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor &x = ctx->input(0), &b = ctx->input(1), &ref = ctx->input(2), &constants = ctx->input(3);
    const bool bias = b.dims() != 1 || b.NumElements() > 0;
    const bool has_ref = ref.NumElements() > 0 || (grad_ > 0 && act_ != kLinear);
    OP_REQUIRES(ctx, constants.dims() == 1 && constants.NumElements() == 2,
                InvalidArgument("constants must be (alpha, gain), received shape ",
                                constants.shape().DebugString()));
    OP_REQUIRES(ctx, !bias || (axis_ >= 0 && axis_ < x.dims()),
                InvalidArgument("axis must be a dimension of x, received ", axis_, " for x of shape ",
                                x.shape().DebugString()));
    OP_REQUIRES(ctx, !bias || (b.dims() == 1 && b.dim_size(0) == x.dim_size(axis_)),
                InvalidArgument("b must be a vector as long as dimension ", axis_,
                                " of x or [0]. Received x ", x.shape().DebugString(), " and b ",
                                b.shape().DebugString()));
    OP_REQUIRES(ctx, !has_ref || ref.shape() == x.shape(),
                InvalidArgument("ref must have the shape of x, ", x.shape().DebugString(), ", received ",
                                ref.shape().DebugString()));
    Tensor* y = nullptr;
    OP_REQUIRES_OK(ctx, ctx->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    if (x.NumElements() == 0) return;
    StyleganFusedBiasAct args = {};
    args.x = x.data();
    args.b = bias ? b.data() : nullptr;
    args.ref = has_ref ? ref.data() : nullptr;
    args.y = y->data();
    args.size = x.NumElements();
    args.bias_size = bias ? b.dim_size(0) : 1;
    args.bias_step = 1;
    for (int i = axis_ + 1; bias && i < x.dims(); ++i) args.bias_step *= x.dim_size(i);
    args.act = act_;
    args.grad = grad_;
    args.dtype = kDType<T>;
    args.alpha = constants.flat<double>()(0);
    args.gain = constants.flat<double>()(1);
    const char* error = stylegan_fused_bias_act_gpu(&args, stream_of(ctx));
    OP_REQUIRES(ctx, error == nullptr, Internal("StyleganFusedBiasAct: ", error ? error : ""));
  }

 private:
  int axis_, act_, grad_;
};

template <typename T>
class UpFirDn2DGpuOp : public OpKernel {
 public:
  explicit UpFirDn2DGpuOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("upx", &upx_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("upy", &upy_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("downx", &downx_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("downy", &downy_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("padx0", &padx0_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("padx1", &padx1_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("pady0", &pady0_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("pady1", &pady1_));
    for (int64_t factor : {upx_, upy_, downx_, downy_}) {
      OP_REQUIRES(ctx, factor >= 1 && factor <= kMaxFactor,
                  InvalidArgument("factors must be 1 to ", kMaxFactor, ", received ", factor));
    }
    for (int64_t pad : {padx0_, padx1_, pady0_, pady1_}) {
      OP_REQUIRES(ctx, pad >= -kMaxSize && pad <= kMaxSize,
                  InvalidArgument("pads must be at most ", kMaxSize, ", received ", pad));
    }
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor &x = ctx->input(0), &k = ctx->input(1);
    OP_REQUIRES(ctx, x.dims() == 4 && k.dims() == 2,
                InvalidArgument("x must have rank 4 and k rank 2, received ", x.shape().DebugString(),
                                " and ", k.shape().DebugString()));
    OP_REQUIRES(ctx, k.NumElements() <= STYLEGAN_MAX_TAPS,
                InvalidArgument("k may have ", int{STYLEGAN_MAX_TAPS}, " taps on a GPU, received ",
                                k.shape().DebugString()));
    StyleganUpFirDn2D args = {};
    OP_REQUIRES_OK(ctx, output_size(x.dim_size(1), upy_, downy_, pady0_, pady1_, k.dim_size(0), &args.out_h));
    OP_REQUIRES_OK(ctx, output_size(x.dim_size(2), upx_, downx_, padx0_, padx1_, k.dim_size(1), &args.out_w));
    TensorShape shape;  // Grown by one dimension at a time: each checks for overflow.
    for (int64_t size : {x.dim_size(0), args.out_h, args.out_w, x.dim_size(3)}) {
      OP_REQUIRES_OK(ctx, shape.AddDimWithStatus(size));
    }
    Tensor* y = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, shape, &y));
    if (y->NumElements() == 0) return;
    args.x = x.data();
    args.y = y->data();
    std::copy_n(k.flat<double>().data(), k.NumElements(), args.k);
    args.kh = k.dim_size(0);
    args.kw = k.dim_size(1);
    args.upx = upx_;
    args.upy = upy_;
    args.downx = downx_;
    args.downy = downy_;
    args.padx0 = padx0_;
    args.pady0 = pady0_;
    args.major = x.dim_size(0);
    args.in_h = x.dim_size(1);
    args.in_w = x.dim_size(2);
    args.minor = x.dim_size(3);
    args.dtype = kDType<T>;
    const char* error = stylegan_upfirdn_2d_gpu(&args, stream_of(ctx));
    OP_REQUIRES(ctx, error == nullptr, Internal("StyleganUpFirDn2D: ", error ? error : ""));
  }

 private:
  static tensorflow::Status output_size(int64_t in, int64_t up, int64_t down, int64_t pad0, int64_t pad1,
                                        int64_t taps, int64_t* out) {
    if (taps < 1 || taps > kMaxTaps) {
      return InvalidArgument("k must have 1 to ", kMaxTaps, " rows and columns, received ", taps);
    }
    if (in > kMaxSize / up) return InvalidArgument("an image of ", in, " upsampled by ", up, " is too large");
    const int64_t padded = in * up + pad0 + pad1;
    if (padded < taps || padded > kMaxSize) {
      return InvalidArgument("the padded image has ", padded,
                             " rows or columns, but must have at least the ", taps, " of k and at most ",
                             kMaxSize);
    }
    *out = (padded - taps) / down + 1;
    return tensorflow::OkStatus();
  }

  int64_t upx_, upy_, downx_, downy_, padx0_, padx1_, pady0_, pady1_;
};

#define REGISTER(T)                                                                                        \
  REGISTER_KERNEL_BUILDER(Name("StyleganFusedBiasAct")                                                     \
                              .Device(tensorflow::DEVICE_GPU)                                              \
                              .HostMemory("constants")                                                     \
                              .TypeConstraint<T>("T"),                                                     \
                          FusedBiasActGpuOp<T>);                                                           \
  REGISTER_KERNEL_BUILDER(                                                                                 \
      Name("StyleganUpFirDn2D").Device(tensorflow::DEVICE_GPU).HostMemory("k").TypeConstraint<T>("T"),     \
      UpFirDn2DGpuOp<T>)
REGISTER(float);
REGISTER(double);
REGISTER(Eigen::half);
REGISTER(Eigen::bfloat16);
#undef REGISTER

}  // namespace
