// The operations StyleganFilterNoiseBiasAct and its transpose: registration, checks, CPU kernels.
//
// StyleganFilterNoiseBiasAct, with x [N, inH, inW, C], * a convolution (k is flipped, x padded with zeros)
// and act one of linear, relu, lrelu:
//   grad = 0: y = act((x * k)·factor + noise + bias)·gain
//   grad = 1: y = ((x * k)·factor + noise + bias)·act'·gain, act' taken at ref, the output of grad = 0.
// y, ref: [N, outH, outW, C], outH = inH + pady0 + pady1 - kh + 1; factor: [N, C]; noise: [N or 1, outH,
// outW, 1]; bias: [C]; k: [kh, kw], in host memory. Each of k, factor, noise and bias may be missing: it is
// then empty. ref is empty with grad = 0 and for linear. constants: (alpha, gain), in host memory. act: see
// fused_bias_act.
//
// StyleganFilterNoiseBiasActGrad, the gradient: with v and ref [N, outH, outW, C], ∘ the transpose of *,
// g = v·act'·gain:
//   dx = (g ∘ k)·factor, dfactor = Σ_hw (g ∘ k)·x, dnoise = Σ_c g, dbias = Σ_nhw g
// x and factor are both there or both empty, dfactor is empty then. dnoise [N, outH, outW, 1] is empty unless
// `noise` asks for it.
//
// Eager mode does not call shape functions: what protects memory is checked when the operation runs.

#include <algorithm>
#include <cstdint>

#include "filter_noise_bias_act_op.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"
#include "tf_types.h"

namespace {

using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// The size of x [N, H, W, C] filtered, for a shape function; k of unknown size leaves it open.
Status filtered_shape(InferenceContext* c, ShapeHandle x, ShapeHandle k, bool transposed, ShapeHandle* y) {
  stylegan::FilterPads pads;
  TF_RETURN_IF_ERROR(pads.read(c));
  TF_RETURN_IF_ERROR(c->WithRank(x, 4, &x));
  TF_RETURN_IF_ERROR(c->WithRank(k, 2, &k));
  DimensionHandle sizes[2] = {c->UnknownDim(), c->UnknownDim()};
  if (c->ValueKnown(c->Dim(k, 0)) && c->ValueKnown(c->Dim(k, 1))) {
    const int64_t taps[2] = {c->Value(c->Dim(k, 0)), c->Value(c->Dim(k, 1))};
    const bool filter = taps[0] > 0 && taps[1] > 0;
    if (transposed && filter) pads = pads.transposed(taps[0], taps[1]);
    const int64_t pad[2][2] = {{pads.y0, pads.y1}, {pads.x0, pads.x1}};
    for (int i = 0; i < 2; ++i) {
      const DimensionHandle size = c->Dim(x, 1 + i);
      int64_t out = 0;
      if (!filter) {
        sizes[i] = size;
      } else if (c->ValueKnown(size)) {
        TF_RETURN_IF_ERROR(stylegan::output_size(c->Value(size), 1, 1, pad[i][0], pad[i][1], taps[i], &out));
        sizes[i] = c->MakeDim(out);
      }
    }
  }
  *y = c->MakeShape({c->Dim(x, 0), sizes[0], sizes[1], c->Dim(x, 3)});
  return tensorflow::OkStatus();
}

REGISTER_OP("StyleganFilterNoiseBiasAct")
    .Input("x: T")
    .Input("k: double")
    .Input("factor: T")
    .Input("noise: T")
    .Input("bias: T")
    .Input("ref: T")
    .Input("constants: double")
    .Output("y: T")
    .Attr("T: {float, double, half, bfloat16}")
    .Attr("act: int = 1")
    .Attr("grad: int = 0")
    .Attr("padx0: int = 0")
    .Attr("padx1: int = 0")
    .Attr("pady0: int = 0")
    .Attr("pady1: int = 0")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle y;
      TF_RETURN_IF_ERROR(filtered_shape(c, c->input(0), c->input(1), false, &y));
      c->set_output(0, y);
      return tensorflow::OkStatus();
    });

REGISTER_OP("StyleganFilterNoiseBiasActGrad")
    .Input("v: T")
    .Input("k: double")
    .Input("x: T")
    .Input("factor: T")
    .Input("ref: T")
    .Input("constants: double")
    .Output("dx: T")
    .Output("dfactor: T")
    .Output("dnoise: T")
    .Output("dbias: T")
    .Attr("T: {float, double, half, bfloat16}")
    .Attr("act: int = 1")
    .Attr("noise: bool = false")
    .Attr("padx0: int = 0")
    .Attr("padx1: int = 0")
    .Attr("pady0: int = 0")
    .Attr("pady1: int = 0")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle dx;
      bool noise;
      TF_RETURN_IF_ERROR(filtered_shape(c, c->input(0), c->input(1), true, &dx));
      TF_RETURN_IF_ERROR(c->GetAttr("noise", &noise));
      c->set_output(0, dx);
      c->set_output(1, c->input(3));
      c->set_output(2, noise ? c->MakeShape({c->Dim(dx, 0), c->Dim(c->input(0), 1), c->Dim(c->input(0), 2),
                                             c->MakeDim(1)})
                             : c->Vector(0));
      c->set_output(3, c->Vector(c->Dim(dx, 3)));
      return tensorflow::OkStatus();
    });

template <typename Function>
void for_rows(OpKernelContext* ctx, int64_t rows, int64_t cost, Function function) {
  const auto& workers = *ctx->device()->tensorflow_cpu_worker_threads();
  tensorflow::Shard(workers.num_threads, workers.workers, rows, cost, function);
}

template <typename Kernel>
void run_filter(OpKernelContext* ctx, const Kernel& kernel, const stylegan::UpFirDnArgs& args,
                int64_t more_cost = 0) {
  for_rows(ctx, args.major * args.out_h, kernel.row_cost() + more_cost,
           [&](int64_t first, int64_t last) { kernel.run(first, last); });
}

template <typename T>
class CpuFilterNoiseBiasActOp : public stylegan::FilterNoiseBiasActOp {
 public:
  using FilterNoiseBiasActOp::FilterNoiseBiasActOp;

 protected:
  void run(OpKernelContext* ctx, const stylegan::EpilogueArgs& args,
           const stylegan::UpFirDnArgs& filter) const override {
    using S = typename stylegan::Storage<T>::type;
    const stylegan::NoiseBiasAct<S> epilogue(args);
    if (filter.kh > 0) {
      run_filter(ctx, stylegan::UpFirDn2D<S, stylegan::NoiseBiasAct<S>>(filter, epilogue), filter,
                 args.w * args.minor / 4);
    } else {
      for_rows(ctx, args.major * args.h, args.w * args.minor * 2, [&](int64_t first, int64_t last) {
        epilogue.run(static_cast<const S*>(filter.x), static_cast<S*>(filter.y), first, last);
      });
    }
  }
};

template <typename T>
class CpuFilterNoiseBiasActGradOp : public stylegan::FilterNoiseBiasActGradOp {
 public:
  using FilterNoiseBiasActGradOp::FilterNoiseBiasActGradOp;

 protected:
  void run(OpKernelContext* ctx, const stylegan::EpilogueGradArgs& args) const override {
    using S = typename stylegan::Storage<T>::type;
    const stylegan::EpilogueArgs& of_v = args.epilogue;
    const bool filter = args.filter.kh > 0;
    if (of_v.major * of_v.h * of_v.w * of_v.minor == 0) {  // Sums over nothing; dx may be larger than v.
      for (Tensor* tensor : {args.dx, args.dfactor, args.dnoise, args.dbias}) fill_zeros(tensor);
      return;
    }
    const S *v = static_cast<const S*>(args.v), *x = static_cast<const S*>(args.x);
    S* const dnoise = args.dnoise->NumElements() > 0 ? static_cast<S*>(args.dnoise->data()) : nullptr;
    S* const dfactor = x != nullptr ? static_cast<S*>(args.dfactor->data()) : nullptr;
    S* const g = static_cast<S*>(const_cast<void*>(args.filter.x));
    stylegan::NoiseBiasActGrad<S> kernel(of_v, v, filter ? nullptr : x, g, dnoise);
    for_rows(ctx, of_v.major * of_v.h, of_v.w * of_v.minor * 2,
             [&](int64_t first, int64_t last) { kernel.run(first, last); });
    kernel.finish(static_cast<S*>(args.dbias->data()), filter ? nullptr : dfactor);
    if (!filter) return;
    if (args.dx->NumElements() == 0) {
      fill_zeros(args.dfactor);
    } else if (x == nullptr) {
      run_filter(ctx, stylegan::UpFirDn2D<S>(args.filter), args.filter);
    } else {
      stylegan::EpilogueArgs of_dx = of_v;
      of_dx.h = args.filter.out_h;
      of_dx.w = args.filter.out_w;
      stylegan::RowSums<S> products(of_dx.major * of_dx.h, of_dx.minor);
      const stylegan::FactorGrad<S> epilogue(of_dx, x, &products);
      run_filter(ctx, stylegan::UpFirDn2D<S, stylegan::FactorGrad<S>>(args.filter, epilogue), args.filter);
      products.finish(of_dx.major, dfactor);
    }
  }

 private:
  static void fill_zeros(Tensor* tensor) {
    std::fill_n(tensor->flat<T>().data(), tensor->NumElements(), T(0));
  }
};

#define REGISTER(T)                                                                                      \
  REGISTER_KERNEL_BUILDER(                                                                               \
      Name("StyleganFilterNoiseBiasAct").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),          \
      CpuFilterNoiseBiasActOp<T>);                                                                          \
  REGISTER_KERNEL_BUILDER(                                                                               \
      Name("StyleganFilterNoiseBiasActGrad").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),      \
      CpuFilterNoiseBiasActGradOp<T>)
REGISTER(float);
REGISTER(double);
REGISTER(Eigen::half);
REGISTER(Eigen::bfloat16);
#undef REGISTER

}  // namespace
