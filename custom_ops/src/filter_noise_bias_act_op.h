// The operations StyleganFilterNoiseBiasAct and StyleganFilterNoiseBiasActGrad, but for the device:
// attributes, checks, outputs. See filter_noise_bias_act_op.cc for the meaning.

#ifndef STYLEGAN_FILTER_NOISE_BIAS_ACT_OP_H_
#define STYLEGAN_FILTER_NOISE_BIAS_ACT_OP_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "filter_noise_bias_act_cpu.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "upfirdn_2d_size.h"

namespace stylegan {

struct FilterPads {
  int64_t x0, x1, y0, y1;

  // From the attributes of an OpKernelConstruction or InferenceContext.
  template <typename Context>
  tensorflow::Status read(Context* c) {
    TF_RETURN_IF_ERROR(c->GetAttr("padx0", &x0));
    TF_RETURN_IF_ERROR(c->GetAttr("padx1", &x1));
    TF_RETURN_IF_ERROR(c->GetAttr("pady0", &y0));
    TF_RETURN_IF_ERROR(c->GetAttr("pady1", &y1));
    for (int64_t pad : {x0, x1, y0, y1}) TF_RETURN_IF_ERROR(check_pad(pad));
    return tensorflow::OkStatus();
  }

  // Pads of the transposed filter.
  FilterPads transposed(int64_t kh, int64_t kw) const {
    return {kw - x0 - 1, kw - x1 - 1, kh - y0 - 1, kh - y1 - 1};
  }
};

class EpilogueBase : public tensorflow::OpKernel {
 public:
  explicit EpilogueBase(tensorflow::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, pads_.read(ctx));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("act", &act_));
    OP_REQUIRES(ctx, act_ >= kLinear && act_ <= kLrelu,
                tensorflow::errors::InvalidArgument("act must be 1, 2 or 3, received ", act_));
  }

 protected:
  using Context = tensorflow::OpKernelContext;
  using Status = tensorflow::Status;
  using Tensor = tensorflow::Tensor;
  using TensorShape = tensorflow::TensorShape;

  // What x [N, H, W, C] becomes by the filter k, which may be empty.
  static Status filtered(const Tensor& x, const Tensor& k, const FilterPads& pads, TensorShape* y) {
    if (x.dims() != 4 || k.dims() != 2) {
      return tensorflow::errors::InvalidArgument("images must have rank 4 and k rank 2, received ",
                                                 x.shape().DebugString(), " and ", k.shape().DebugString());
    }
    if (k.NumElements() == 0) {
      *y = x.shape();
      return tensorflow::OkStatus();
    }
    int64_t h = 0, w = 0;
    TF_RETURN_IF_ERROR(output_size(x.dim_size(1), 1, 1, pads.y0, pads.y1, k.dim_size(0), &h));
    TF_RETURN_IF_ERROR(output_size(x.dim_size(2), 1, 1, pads.x0, pads.x1, k.dim_size(1), &w));
    return make_shape(x.dim_size(0), h, w, x.dim_size(3), y);
  }

  // A tensor must be empty or have this shape.
  static Status expect(const char* name, const Tensor& tensor, const TensorShape& shape,
                       bool optional = true) {
    if (tensor.shape() == shape || (optional && tensor.NumElements() == 0)) return tensorflow::OkStatus();
    return tensorflow::errors::InvalidArgument(name, " must have shape ", shape.DebugString(), ", received ",
                                               tensor.shape().DebugString());
  }

  static Status expect_constants(const Tensor& constants) {
    return expect("constants", constants, TensorShape({2}), false);
  }

  bool reads_ref(int grad) const { return needs_ref(act_, grad); }

  static const void* data_or_null(const Tensor& tensor) {
    return tensor.NumElements() > 0 ? tensor.data() : nullptr;
  }

  // Without noise and bias.
  EpilogueArgs epilogue_arguments(const TensorShape& shape, const Tensor& ref, const Tensor& factor,
                                  const Tensor& constants, int grad) const {
    EpilogueArgs args{};
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

  // From x to y; kh = 0 without a filter.
  static UpFirDnArgs filter_arguments(const Tensor& x, const Tensor& k, const double* taps, Tensor* y,
                                      const FilterPads& pads) {
    const bool filter = k.NumElements() > 0;
    const int64_t kh = filter ? k.dim_size(0) : 0, kw = filter ? k.dim_size(1) : 0;
    return {x.data(), taps, y->data(), x.dim_size(0), x.dim_size(1), x.dim_size(2), x.dim_size(3),
            y->dim_size(1), y->dim_size(2), kh, kw, 1, 1, 1, 1, pads.x0, pads.y0};
  }

  FilterPads pads_;
  int act_;
};

// StyleganFilterNoiseBiasAct; a device computes filter.y from filter.x.
class FilterNoiseBiasActOp : public EpilogueBase {
 public:
  explicit FilterNoiseBiasActOp(tensorflow::OpKernelConstruction* ctx) : EpilogueBase(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("grad", &grad_));
    OP_REQUIRES(ctx, grad_ == 0 || grad_ == 1,
                tensorflow::errors::InvalidArgument("grad must be 0 or 1, received ", grad_));
  }

  void Compute(Context* ctx) override {
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
    OP_REQUIRES_OK(ctx, expect("ref", ref, shape, !reads_ref(grad_)));
    OP_REQUIRES_OK(ctx, expect_constants(constants));
    Tensor* y = nullptr;
    if (k.NumElements() > 0) {
      OP_REQUIRES_OK(ctx, ctx->allocate_output(0, shape, &y));
    } else {
      OP_REQUIRES_OK(ctx, ctx->forward_input_or_allocate_output({0}, 0, shape, &y));
    }
    if (y->NumElements() == 0) return;
    EpilogueArgs args = epilogue_arguments(shape, ref, factor, constants, grad_);
    args.noise = data_or_null(noise);
    args.noise_major = one_noise ? 1 : major;
    args.bias = data_or_null(bias);
    run(ctx, args, filter_arguments(x, k, k.flat<double>().data(), y, pads_));
  }

 protected:
  virtual void run(Context* ctx, const EpilogueArgs& args, const UpFirDnArgs& filter) const = 0;

 private:
  int grad_;
};

// What StyleganFilterNoiseBiasActGrad computes from v: first g = v·act'·gain and its sums, then what the
// transposed filter makes of it, times factor.
struct EpilogueGradArgs {
  EpilogueArgs epilogue;    // Of v.
  UpFirDnArgs filter;       // From g to dx; kh = 0: no filter, g is not kept.
  const void *v, *x;        // x: NULL without a factor.
  tensorflow::Tensor *dx, *dfactor, *dnoise, *dbias;  // dfactor, dnoise: empty where they are not wanted.
};

// StyleganFilterNoiseBiasActGrad; a device computes it, also where v is empty.
class FilterNoiseBiasActGradOp : public EpilogueBase {
 public:
  explicit FilterNoiseBiasActGradOp(tensorflow::OpKernelConstruction* ctx) : EpilogueBase(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("noise", &noise_));
  }

  void Compute(Context* ctx) override {
    const Tensor &v = ctx->input(0), &k = ctx->input(1), &x = ctx->input(2), &factor = ctx->input(3);
    const Tensor &ref = ctx->input(4), &constants = ctx->input(5);
    OP_REQUIRES(ctx, k.dims() == 2,
                tensorflow::errors::InvalidArgument("k must have rank 2, received ",
                                                    k.shape().DebugString()));
    const FilterPads pads = pads_.transposed(k.dim_size(0), k.dim_size(1));
    TensorShape shape;
    OP_REQUIRES_OK(ctx, filtered(v, k, pads, &shape));
    const int64_t major = v.dim_size(0), h = v.dim_size(1), w = v.dim_size(2), minor = v.dim_size(3);
    OP_REQUIRES_OK(ctx, expect("factor", factor, TensorShape({major, minor})));
    OP_REQUIRES_OK(ctx, expect("x", x, shape, factor.NumElements() == 0));
    OP_REQUIRES_OK(ctx, expect("ref", ref, v.shape(), !reads_ref(1)));
    OP_REQUIRES_OK(ctx, expect_constants(constants));

    EpilogueGradArgs args{};
    Tensor g;
    if (k.NumElements() > 0) {
      OP_REQUIRES_OK(ctx, ctx->allocate_output(0, shape, &args.dx));
      OP_REQUIRES_OK(ctx, ctx->allocate_temp(v.dtype(), v.shape(), &g));
    } else {
      OP_REQUIRES_OK(ctx, ctx->forward_input_or_allocate_output({0}, 0, shape, &args.dx));
      g = *args.dx;
    }
    OP_REQUIRES_OK(ctx, ctx->allocate_output(1, factor.shape(), &args.dfactor));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(2, noise_ ? TensorShape({major, h, w, 1}) : TensorShape({0}),
                                             &args.dnoise));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(3, TensorShape({minor}), &args.dbias));
    const double* taps = k.flat<double>().data();
    std::vector<double> flipped(k.NumElements());
    std::reverse_copy(taps, taps + k.NumElements(), flipped.begin());
    args.epilogue = epilogue_arguments(v.shape(), ref, factor, constants, 1);
    args.filter = filter_arguments(g, k, flipped.data(), args.dx, pads);
    args.v = v.data();
    args.x = factor.NumElements() > 0 ? x.data() : nullptr;
    run(ctx, args);
  }

 protected:
  virtual void run(Context* ctx, const EpilogueGradArgs& args) const = 0;

 private:
  bool noise_;
};

}  // namespace stylegan

#endif  // STYLEGAN_FILTER_NOISE_BIAS_ACT_OP_H_
