// The operations StyleganFilterNoiseBiasAct and its transpose: registration, checks, CPU kernels.
//
// StyleganFilterNoiseBiasAct, with x [N, inH, inW, C], * a convolution (k is flipped, x padded with zeros) and
// act one of linear, relu, lrelu:
//   grad = 0: y = act((x * k)·factor + noise + bias)·gain
//   grad = 1: y = ((x * k)·factor + noise + bias)·act'·gain, act' taken at ref, the output of grad = 0.
// y, ref: [N, outH, outW, C], outH = inH + pady0 + pady1 - kh + 1; factor: [N, C]; noise: [N or 1, outH, outW, 1];
// bias: [C]; k: [kh, kw], in host memory. Each of k, factor, noise and bias may be missing: it is then empty.
// ref is empty with grad = 0 and for linear. constants: (alpha, gain), in host memory. act: see fused_bias_act.
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

#include "filter_noise_bias_act_cpu.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"
#include "tf_types.h"
#include "upfirdn_2d_size.h"

namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

struct Pads {
  int64_t x0, x1, y0, y1;

  // From the attributes of an OpKernelConstruction or InferenceContext.
  template <typename Context>
  Status read(Context* c) {
    TF_RETURN_IF_ERROR(c->GetAttr("padx0", &x0));
    TF_RETURN_IF_ERROR(c->GetAttr("padx1", &x1));
    TF_RETURN_IF_ERROR(c->GetAttr("pady0", &y0));
    TF_RETURN_IF_ERROR(c->GetAttr("pady1", &y1));
    for (int64_t pad : {x0, x1, y0, y1}) TF_RETURN_IF_ERROR(stylegan::check_pad(pad));
    return tensorflow::OkStatus();
  }

  // Pads of the transposed filter.
  Pads transposed(int64_t kh, int64_t kw) const { return {kw - x0 - 1, kw - x1 - 1, kh - y0 - 1, kh - y1 - 1}; }
};

// The size of x [N, H, W, C] filtered, for a shape function; k of unknown size leaves it open.
Status filtered_shape(InferenceContext* c, ShapeHandle x, ShapeHandle k, bool transposed, ShapeHandle* y) {
  Pads pads;
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

// Grown by one dimension at a time: each checks for overflow.
Status make_shape(int64_t major, int64_t h, int64_t w, int64_t minor, TensorShape* shape) {
  for (int64_t size : {major, h, w, minor}) TF_RETURN_IF_ERROR(shape->AddDimWithStatus(size));
  return tensorflow::OkStatus();
}

const void* data_or_null(const Tensor& tensor) { return tensor.NumElements() > 0 ? tensor.data() : nullptr; }

class EpilogueBase : public OpKernel {
 public:
  explicit EpilogueBase(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, pads_.read(ctx));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("act", &act_));
    OP_REQUIRES(ctx, act_ >= stylegan::kLinear && act_ <= stylegan::kLrelu,
                InvalidArgument("act must be 1, 2 or 3, received ", act_));
  }

 protected:
  // What x [N, H, W, C] becomes by the filter k, which may be empty, or by its transpose.
  Status filtered(const Tensor& x, const Tensor& k, const Pads& pads, TensorShape* y) const {
    if (x.dims() != 4 || k.dims() != 2) {
      return InvalidArgument("images must have rank 4 and k rank 2, received ", x.shape().DebugString(), " and ",
                             k.shape().DebugString());
    }
    if (k.NumElements() == 0) {
      *y = x.shape();
      return tensorflow::OkStatus();
    }
    int64_t h = 0, w = 0;
    TF_RETURN_IF_ERROR(stylegan::output_size(x.dim_size(1), 1, 1, pads.y0, pads.y1, k.dim_size(0), &h));
    TF_RETURN_IF_ERROR(stylegan::output_size(x.dim_size(2), 1, 1, pads.x0, pads.x1, k.dim_size(1), &w));
    return make_shape(x.dim_size(0), h, w, x.dim_size(3), y);
  }

  // A tensor must be empty or have this shape.
  static Status expect(const char* name, const Tensor& tensor, const TensorShape& shape, bool optional = true) {
    if (tensor.shape() == shape || (optional && tensor.NumElements() == 0)) return tensorflow::OkStatus();
    return InvalidArgument(name, " must have shape ", shape.DebugString(), ", received ",
                           tensor.shape().DebugString());
  }

  static Status expect_constants(const Tensor& constants) {
    return expect("constants", constants, TensorShape({2}), false);
  }

  bool needs_ref(int grad) const { return stylegan::needs_ref(act_, grad); }

  stylegan::EpilogueArgs arguments(const TensorShape& shape, const Tensor& ref, const Tensor& factor,
                                   const Tensor& constants, int grad) const {
    stylegan::EpilogueArgs args{};
    args.ref = data_or_null(ref);
    args.factor = data_or_null(factor);
    args.major = shape.dim_size(0);
    args.h = shape.dim_size(1);
    args.w = shape.dim_size(2);
    args.minor = shape.dim_size(3);
    args.act = act_;
    args.grad = grad;
    args.alpha = constants.flat<double>()(0);
    args.gain = constants.flat<double>()(1);
    return args;
  }

  template <typename Function>
  static void for_rows(OpKernelContext* ctx, int64_t rows, int64_t cost, Function function) {
    const auto& workers = *ctx->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(workers.num_threads, workers.workers, rows, cost, function);
  }

  Pads pads_;
  int act_;
};

stylegan::UpFirDnArgs filter_arguments(const Tensor& x, const double* k, const Tensor& k_shape, Tensor* y,
                                       const Pads& pads) {
  return {x.data(), k, y->data(), x.dim_size(0), x.dim_size(1), x.dim_size(2), x.dim_size(3), y->dim_size(1),
          y->dim_size(2), k_shape.dim_size(0), k_shape.dim_size(1), 1, 1, 1, 1, pads.x0, pads.y0};
}

template <typename T>
class FilterNoiseBiasActOp : public EpilogueBase {
 public:
  explicit FilterNoiseBiasActOp(OpKernelConstruction* ctx) : EpilogueBase(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("grad", &grad_));
    OP_REQUIRES(ctx, grad_ == 0 || grad_ == 1, InvalidArgument("grad must be 0 or 1, received ", grad_));
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor &x = ctx->input(0), &k = ctx->input(1), &factor = ctx->input(2), &noise = ctx->input(3);
    const Tensor &bias = ctx->input(4), &ref = ctx->input(5), &constants = ctx->input(6);
    TensorShape shape;
    OP_REQUIRES_OK(ctx, filtered(x, k, pads_, &shape));
    const int64_t major = shape.dim_size(0), h = shape.dim_size(1), w = shape.dim_size(2);
    const int64_t minor = shape.dim_size(3);
    OP_REQUIRES_OK(ctx, expect("factor", factor, TensorShape({major, minor})));
    const bool one_noise = noise.dims() > 0 && noise.dim_size(0) == 1;
    OP_REQUIRES_OK(ctx, expect("noise", noise, TensorShape({one_noise ? 1 : major, h, w, 1})));
    OP_REQUIRES_OK(ctx, expect("bias", bias, TensorShape({minor})));
    OP_REQUIRES_OK(ctx, expect("ref", ref, shape, !needs_ref(grad_)));
    OP_REQUIRES_OK(ctx, expect_constants(constants));
    const bool filter = k.NumElements() > 0;
    Tensor* y = nullptr;
    if (filter) {
      OP_REQUIRES_OK(ctx, ctx->allocate_output(0, shape, &y));
    } else {
      OP_REQUIRES_OK(ctx, ctx->forward_input_or_allocate_output({0}, 0, shape, &y));
    }
    if (y->NumElements() == 0) return;
    stylegan::EpilogueArgs args = arguments(shape, ref, factor, constants, grad_);
    args.noise = data_or_null(noise);
    args.noise_major = one_noise ? 1 : major;
    args.bias = data_or_null(bias);
    using S = typename stylegan::Storage<T>::type;
    const stylegan::NoiseBiasAct<S> epilogue(args);
    if (filter) {
      const stylegan::UpFirDn2D<S, stylegan::NoiseBiasAct<S>> kernel(
          filter_arguments(x, k.flat<double>().data(), k, y, pads_), epilogue);
      for_rows(ctx, major * h, kernel.row_cost() + w * minor / 4,
               [&](int64_t first, int64_t last) { kernel.run(first, last); });
    } else {
      for_rows(ctx, major * h, w * minor * 2, [&](int64_t first, int64_t last) {
        epilogue.run(static_cast<const S*>(x.data()), static_cast<S*>(y->data()), first, last);
      });
    }
  }

 private:
  int grad_;
};

template <typename T>
class FilterNoiseBiasActGradOp : public EpilogueBase {
 public:
  explicit FilterNoiseBiasActGradOp(OpKernelConstruction* ctx) : EpilogueBase(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("noise", &noise_));
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor &v = ctx->input(0), &k = ctx->input(1), &x = ctx->input(2), &factor = ctx->input(3);
    const Tensor &ref = ctx->input(4), &constants = ctx->input(5);
    OP_REQUIRES(ctx, k.dims() == 2, InvalidArgument("k must have rank 2, received ", k.shape().DebugString()));
    const Pads pads = pads_.transposed(k.dim_size(0), k.dim_size(1));
    TensorShape shape;
    OP_REQUIRES_OK(ctx, filtered(v, k, pads, &shape));
    const int64_t major = v.dim_size(0), h = v.dim_size(1), w = v.dim_size(2), minor = v.dim_size(3);
    OP_REQUIRES_OK(ctx, expect("factor", factor, TensorShape({major, minor})));
    const bool has_factor = factor.NumElements() > 0;
    OP_REQUIRES_OK(ctx, expect("x", x, shape, !has_factor));
    OP_REQUIRES_OK(ctx, expect("ref", ref, v.shape(), !needs_ref(1)));
    OP_REQUIRES_OK(ctx, expect_constants(constants));
    const bool filter = k.NumElements() > 0;

    Tensor *dx = nullptr, *dfactor = nullptr, *dnoise = nullptr, *dbias = nullptr, scaled;
    if (filter) {
      OP_REQUIRES_OK(ctx, ctx->allocate_output(0, shape, &dx));
      OP_REQUIRES_OK(ctx, ctx->allocate_temp(v.dtype(), v.shape(), &scaled));
    } else {
      OP_REQUIRES_OK(ctx, ctx->forward_input_or_allocate_output({0}, 0, shape, &dx));
    }
    OP_REQUIRES_OK(ctx, ctx->allocate_output(1, factor.shape(), &dfactor));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(2, noise_ ? TensorShape({major, h, w, 1}) : TensorShape({0}), &dnoise));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(3, TensorShape({minor}), &dbias));
    if (v.NumElements() == 0) {  // What is summed up over nothing is 0; dx may be larger than v.
      for (Tensor* tensor : {dx, dfactor, dnoise, dbias}) {
        std::fill_n(tensor->flat<T>().data(), tensor->NumElements(), T(0));
      }
      return;
    }
    using S = typename stylegan::Storage<T>::type;
    const stylegan::EpilogueArgs args = arguments(v.shape(), ref, factor, constants, 1);
    const S* factor_x = has_factor ? static_cast<const S*>(x.data()) : nullptr;
    stylegan::NoiseBiasActGrad<S> kernel(args, static_cast<const S*>(v.data()), filter ? nullptr : factor_x,
                                         static_cast<S*>(filter ? scaled.data() : dx->data()),
                                         noise_ ? static_cast<S*>(dnoise->data()) : nullptr);
    for_rows(ctx, major * h, w * minor * 2, [&](int64_t first, int64_t last) { kernel.run(first, last); });
    S* const factor_out = has_factor ? static_cast<S*>(dfactor->data()) : nullptr;
    kernel.finish(static_cast<S*>(dbias->data()), filter ? nullptr : factor_out);
    if (!filter || dx->NumElements() == 0) {
      if (filter && has_factor) std::fill_n(dfactor->flat<T>().data(), dfactor->NumElements(), T(0));
      return;
    }
    const int64_t taps = k.NumElements();
    std::vector<double> flipped(taps);
    std::reverse_copy(k.flat<double>().data(), k.flat<double>().data() + taps, flipped.begin());
    const stylegan::UpFirDnArgs filter_args = filter_arguments(scaled, flipped.data(), k, dx, pads);
    if (!has_factor) {
      run_filter(ctx, stylegan::UpFirDn2D<S>(filter_args), dx);
      return;
    }
    stylegan::RowSums<S> products(major * shape.dim_size(1), minor);
    const stylegan::FactorGrad<S> epilogue(arguments(shape, ref, factor, constants, 1), factor_x, &products);
    run_filter(ctx, stylegan::UpFirDn2D<S, stylegan::FactorGrad<S>>(filter_args, epilogue), dx);
    products.finish(major, factor_out);
  }

 private:
  template <typename Kernel>
  static void run_filter(OpKernelContext* ctx, const Kernel& kernel, const Tensor* dx) {
    for_rows(ctx, dx->dim_size(0) * dx->dim_size(1), kernel.row_cost(),
             [&](int64_t first, int64_t last) { kernel.run(first, last); });
  }

  bool noise_;
};

#define REGISTER(T)                                                                                      \
  REGISTER_KERNEL_BUILDER(                                                                               \
      Name("StyleganFilterNoiseBiasAct").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),          \
      FilterNoiseBiasActOp<T>);                                                                          \
  REGISTER_KERNEL_BUILDER(                                                                               \
      Name("StyleganFilterNoiseBiasActGrad").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),      \
      FilterNoiseBiasActGradOp<T>)
REGISTER(float);
REGISTER(double);
REGISTER(Eigen::half);
REGISTER(Eigen::bfloat16);
#undef REGISTER

}  // namespace
