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

#include "fused_bias_act_op.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"
#include "tf_types.h"

namespace {

using tensorflow::OpKernelContext;
using tensorflow::Tensor;
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

// Rough cycles per element.
int64_t cost(int act, int grad) { return act <= stylegan::kLrelu ? 2 : grad == 0 ? 10 : 5; }

template <typename T>
class CpuFusedBiasActOp : public stylegan::FusedBiasActOp {
 public:
  using FusedBiasActOp::FusedBiasActOp;

 protected:
  void run(OpKernelContext* ctx, const stylegan::BiasActArgs& args) const override {
    const stylegan::FusedBiasAct<typename stylegan::Storage<T>::type> kernel(args, act_, grad_);
    const auto& workers = *ctx->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(workers.num_threads, workers.workers, args.size, cost(act_, grad_),
                      [&](int64_t first, int64_t last) { kernel.run_range(first, last); });
  }
};

template <typename T>
class CpuFusedBiasActSumsOp : public stylegan::FusedBiasActSumsOp {
 public:
  using FusedBiasActSumsOp::FusedBiasActSumsOp;

 protected:
  void run(OpKernelContext* ctx, const stylegan::BiasActArgs& args, Tensor* db) const override {
    using S = typename stylegan::Storage<T>::type;
    if (args.size == 0) {
      std::fill_n(db->flat<T>().data(), db->NumElements(), T(0));
      return;
    }
    stylegan::FusedBiasActSums<S> kernel(args, act_);
    const auto& workers = *ctx->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(workers.num_threads, workers.workers, kernel.parts(),
                      cost(act_, 1) * (args.size / kernel.parts()), [&](int64_t first, int64_t last) {
                        for (int64_t part = first; part < last; ++part) kernel.run_part(part);
                      });
    kernel.finish(static_cast<S*>(db->data()));
  }
};

#define REGISTER(T)                                                                                        \
  REGISTER_KERNEL_BUILDER(                                                                                 \
      Name("StyleganFusedBiasAct").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),                  \
      CpuFusedBiasActOp<T>);                                                                               \
  REGISTER_KERNEL_BUILDER(                                                                                 \
      Name("StyleganFusedBiasActSums").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),              \
      CpuFusedBiasActSumsOp<T>)
REGISTER(float);
REGISTER(double);
REGISTER(Eigen::half);
REGISTER(Eigen::bfloat16);
#undef REGISTER

}  // namespace
