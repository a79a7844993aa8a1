// The operations StyleganFusedBiasAct and StyleganFusedBiasActSums: registration, checks, CPU kernels.
//
// StyleganFusedBiasAct, element by element, with act' and act'' the derivatives of the activation:
//   grad = 0: y = act(x + b)·gain
//   grad = 1: y = (x + b)·act'·gain
//   grad = 2: y = (x + b)·act''·gain
// The derivatives are taken at ref: the output y of grad = 0 (gain included); for swish its argument (x + b of
// grad = 0, added up by the caller). ref may be empty, [0], where it is not needed: grad = 0 or act = linear.
// b runs along dimension `axis` and is [0] for none. With grad > 0 it is a gradient with respect to the bias,
// in second derivatives. constants: (alpha, gain), in host memory. act: cuda_idx of activation_funcs.
//
// StyleganFusedBiasActSums: dx as grad = 1 without b, and db = its sums over all dimensions but `axis`.
//
// Eager mode does not call shape functions: what protects memory is checked when the operation runs.

#include <algorithm>
#include <cstdint>

#include "fused_bias_act_cpu.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"
#include "tf_types.h"

namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

REGISTER_OP("StyleganFusedBiasAct")
    .Input("x: T")
    .Input("b: T")
    .Input("ref: T")
    .Input("constants: double")
    .Output("y: T")
    .Attr("T: {float, double, half, bfloat16}")
    .Attr("axis: int = 0")
    .Attr("act: int = 1")
    .Attr("grad: int = 0")
    .SetShapeFn(tensorflow::shape_inference::UnchangedShape);

REGISTER_OP("StyleganFusedBiasActSums")
    .Input("x: T")
    .Input("ref: T")
    .Input("constants: double")
    .Output("dx: T")
    .Output("db: T")
    .Attr("T: {float, double, half, bfloat16}")
    .Attr("axis: int = 0")
    .Attr("act: int = 1")
    .SetShapeFn([](InferenceContext* c) {
      int64_t axis;
      TF_RETURN_IF_ERROR(c->GetAttr("axis", &axis));
      c->set_output(0, c->input(0));
      const bool known = c->RankKnown(c->input(0));
      if (known && (axis < 0 || axis >= c->Rank(c->input(0)))) {
        return InvalidArgument("axis must be a dimension of x, received ", axis);
      }
      c->set_output(1, c->Vector(known ? c->Dim(c->input(0), axis) : c->UnknownDim()));
      return tensorflow::OkStatus();
    });

// Elements that share a bias: element i has bias (i / step) % size.
struct BiasLayout {
  int64_t size = 1, step = 1;

  BiasLayout(const TensorShape& shape, int axis) {
    size = shape.dim_size(axis);
    for (int i = axis + 1; i < shape.dims(); ++i) step *= shape.dim_size(i);
  }
};

class FusedBiasActBase : public OpKernel {
 public:
  explicit FusedBiasActBase(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("axis", &axis_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("act", &act_));
    OP_REQUIRES(ctx, act_ >= stylegan::kLinear && act_ <= stylegan::kSwish,
                InvalidArgument("act must be 1 to 9, received ", act_));
  }

 protected:
  bool check(OpKernelContext* ctx, const Tensor& x, const Tensor& ref, const Tensor& constants, int grad,
             bool bias) {
    const bool has_ref = ref.NumElements() > 0 || stylegan::needs_ref(act_, grad);
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

  // Rough cycles per element.
  int64_t cost(int grad) const { return act_ <= stylegan::kLrelu ? 2 : grad == 0 ? 10 : 5; }

  int axis_, act_;
};

template <typename T>
class FusedBiasActOp : public FusedBiasActBase {
 public:
  explicit FusedBiasActOp(OpKernelConstruction* ctx) : FusedBiasActBase(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("grad", &grad_));
    OP_REQUIRES(ctx, grad_ >= 0 && grad_ <= 2, InvalidArgument("grad must be 0, 1 or 2, received ", grad_));
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor &x = ctx->input(0), &b = ctx->input(1), &ref = ctx->input(2), &constants = ctx->input(3);
    const bool bias = b.dims() != 1 || b.NumElements() > 0;
    if (!check(ctx, x, ref, constants, grad_, bias)) return;
    OP_REQUIRES(ctx, !bias || (b.dims() == 1 && b.dim_size(0) == x.dim_size(axis_)),
                InvalidArgument("b must be a vector as long as dimension ", axis_, " of x or [0]. Received x ",
                                x.shape().DebugString(), " and b ", b.shape().DebugString()));
    Tensor* y = nullptr;
    OP_REQUIRES_OK(ctx, ctx->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    if (x.NumElements() == 0) return;
    const BiasLayout layout = bias ? BiasLayout(x.shape(), axis_) : BiasLayout(TensorShape({1}), 0);
    using S = typename stylegan::Storage<T>::type;
    const stylegan::FusedBiasAct<S> kernel(
        {x.data(), bias ? b.data() : nullptr, ref.NumElements() > 0 ? ref.data() : nullptr, y->data(),
         x.NumElements(), layout.size, layout.step, constants.flat<double>()(0), constants.flat<double>()(1)},
        act_, grad_);
    const auto& workers = *ctx->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(workers.num_threads, workers.workers, x.NumElements(), cost(grad_),
                      [&](int64_t first, int64_t last) { kernel.run_range(first, last); });
  }

 private:
  int grad_;
};

template <typename T>
class FusedBiasActSumsOp : public FusedBiasActBase {
 public:
  using FusedBiasActBase::FusedBiasActBase;

  void Compute(OpKernelContext* ctx) override {
    const Tensor &x = ctx->input(0), &ref = ctx->input(1), &constants = ctx->input(2);
    if (!check(ctx, x, ref, constants, 1, true)) return;
    const BiasLayout layout(x.shape(), axis_);
    Tensor *dx = nullptr, *db = nullptr;
    OP_REQUIRES_OK(ctx, ctx->forward_input_or_allocate_output({0}, 0, x.shape(), &dx));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(1, TensorShape({layout.size}), &db));
    if (x.NumElements() == 0) {
      std::fill_n(db->flat<T>().data(), layout.size, T(0));
      return;
    }
    using S = typename stylegan::Storage<T>::type;
    stylegan::FusedBiasActSums<S> kernel(
        {x.data(), nullptr, ref.NumElements() > 0 ? ref.data() : nullptr, dx->data(), x.NumElements(),
         layout.size, layout.step, constants.flat<double>()(0), constants.flat<double>()(1)},
        act_);
    const auto& workers = *ctx->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(workers.num_threads, workers.workers, kernel.parts(),
                      cost(1) * (x.NumElements() / kernel.parts()), [&](int64_t first, int64_t last) {
                        for (int64_t part = first; part < last; ++part) kernel.run_part(part);
                      });
    kernel.finish(static_cast<S*>(db->data()));
  }
};

#define REGISTER(T)                                                                                        \
  REGISTER_KERNEL_BUILDER(                                                                                 \
      Name("StyleganFusedBiasAct").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),                  \
      FusedBiasActOp<T>);                                                                                  \
  REGISTER_KERNEL_BUILDER(                                                                                 \
      Name("StyleganFusedBiasActSums").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),              \
      FusedBiasActSumsOp<T>)
REGISTER(float);
REGISTER(double);
REGISTER(Eigen::half);
REGISTER(Eigen::bfloat16);
#undef REGISTER

}  // namespace
