// The operations StyleganFusedBiasAct and StyleganFusedBiasActSums, but for the device: attributes, checks,
// outputs. See fused_bias_act_op.cc for the meaning.

#ifndef STYLEGAN_FUSED_BIAS_ACT_OP_H_
#define STYLEGAN_FUSED_BIAS_ACT_OP_H_

#include <cstdint>

#include "fused_bias_act_cpu.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace stylegan {

class FusedBiasActBase : public tensorflow::OpKernel {
 public:
  explicit FusedBiasActBase(tensorflow::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("axis", &axis_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("act", &act_));
    OP_REQUIRES(ctx, act_ >= kLinear && act_ <= kSwish,
                tensorflow::errors::InvalidArgument("act must be 1 to 9, received ", act_));
  }

 protected:
  using Tensor = tensorflow::Tensor;
  using Context = tensorflow::OpKernelContext;

  bool check(Context* ctx, const Tensor& x, const Tensor& ref, const Tensor& constants, int grad,
             bool bias) const {
    using tensorflow::errors::InvalidArgument;
    const bool has_ref = ref.NumElements() > 0 || needs_ref(act_, grad);
    if (constants.dims() != 1 || constants.NumElements() != 2) {
      ctx->CtxFailure(InvalidArgument("constants must be (alpha, gain), received shape ",
                                      constants.shape().DebugString()));
    } else if (bias && (axis_ < 0 || axis_ >= x.dims())) {
      ctx->CtxFailure(InvalidArgument("axis must be a dimension of x, received ", axis_, " for x of shape ",
                                      x.shape().DebugString()));
    } else if (has_ref && ref.shape() != x.shape()) {
      ctx->CtxFailure(InvalidArgument("ref must have the shape of x, ", x.shape().DebugString(),
                                      ", received ", ref.shape().DebugString()));
    }
    return ctx->status().ok();
  }

  // Without b; the layout of biases is that of dimension axis_ if there are any.
  BiasActArgs arguments(const Tensor& x, const Tensor& ref, const Tensor& constants, Tensor* y,
                        bool bias) const {
    BiasActArgs args{};
    args.x = x.data();
    args.ref = ref.NumElements() > 0 ? ref.data() : nullptr;
    args.y = y->data();
    args.size = x.NumElements();
    args.bias_size = bias ? x.dim_size(axis_) : 1;
    args.bias_step = 1;
    for (int i = axis_ + 1; bias && i < x.dims(); ++i) args.bias_step *= x.dim_size(i);
    args.alpha = constants.flat<double>()(0);
    args.gain = constants.flat<double>()(1);
    return args;
  }

  int axis_, act_;
};

// StyleganFusedBiasAct; a device computes y.
class FusedBiasActOp : public FusedBiasActBase {
 public:
  explicit FusedBiasActOp(tensorflow::OpKernelConstruction* ctx) : FusedBiasActBase(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("grad", &grad_));
    OP_REQUIRES(ctx, grad_ >= 0 && grad_ <= 2,
                tensorflow::errors::InvalidArgument("grad must be 0, 1 or 2, received ", grad_));
  }

  void Compute(Context* ctx) override {
    const Tensor &x = ctx->input(0), &b = ctx->input(1), &ref = ctx->input(2), &constants = ctx->input(3);
    const bool bias = b.dims() != 1 || b.NumElements() > 0;
    if (!check(ctx, x, ref, constants, grad_, bias)) return;
    OP_REQUIRES(ctx, !bias || (b.dims() == 1 && b.dim_size(0) == x.dim_size(axis_)),
                tensorflow::errors::InvalidArgument("b must be a vector as long as dimension ", axis_,
                                                    " of x or [0]. Received x ", x.shape().DebugString(),
                                                    " and b ", b.shape().DebugString()));
    Tensor* y = nullptr;
    OP_REQUIRES_OK(ctx, ctx->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    if (x.NumElements() == 0) return;
    BiasActArgs args = arguments(x, ref, constants, y, bias);
    args.b = bias ? b.data() : nullptr;
    run(ctx, args);
  }

 protected:
  virtual void run(Context* ctx, const BiasActArgs& args) const = 0;

  int grad_;
};

// StyleganFusedBiasActSums; a device computes dx and db, also where args.size = 0.
class FusedBiasActSumsOp : public FusedBiasActBase {
 public:
  using FusedBiasActBase::FusedBiasActBase;

  void Compute(Context* ctx) override {
    const Tensor &x = ctx->input(0), &ref = ctx->input(1), &constants = ctx->input(2);
    if (!check(ctx, x, ref, constants, 1, true)) return;
    Tensor *dx = nullptr, *db = nullptr;
    OP_REQUIRES_OK(ctx, ctx->forward_input_or_allocate_output({0}, 0, x.shape(), &dx));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(1, tensorflow::TensorShape({x.dim_size(axis_)}), &db));
    run(ctx, arguments(x, ref, constants, dx, true), db);
  }

 protected:
  virtual void run(Context* ctx, const BiasActArgs& args, Tensor* db) const = 0;
};

}  // namespace stylegan

#endif  // STYLEGAN_FUSED_BIAS_ACT_OP_H_
