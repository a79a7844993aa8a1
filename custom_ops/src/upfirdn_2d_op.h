// The operation StyleganUpFirDn2D, but for the device: attributes, checks, output. See upfirdn_2d_op.cc for
// the meaning.

#ifndef STYLEGAN_UPFIRDN_2D_OP_H_
#define STYLEGAN_UPFIRDN_2D_OP_H_

#include <cstdint>

#include "tensorflow/core/framework/op_kernel.h"
#include "upfirdn_2d_cpu.h"
#include "upfirdn_2d_size.h"

namespace stylegan {

constexpr int64_t kMaxFactor = 1 << 10;

struct UpFirDnFactors {
  int64_t upx, upy, downx, downy, padx0, padx1, pady0, pady1;

  // From the attributes of an OpKernelConstruction or InferenceContext.
  template <typename Context>
  tensorflow::Status read(Context* c) {
    TF_RETURN_IF_ERROR(c->GetAttr("upx", &upx));
    TF_RETURN_IF_ERROR(c->GetAttr("upy", &upy));
    TF_RETURN_IF_ERROR(c->GetAttr("downx", &downx));
    TF_RETURN_IF_ERROR(c->GetAttr("downy", &downy));
    TF_RETURN_IF_ERROR(c->GetAttr("padx0", &padx0));
    TF_RETURN_IF_ERROR(c->GetAttr("padx1", &padx1));
    TF_RETURN_IF_ERROR(c->GetAttr("pady0", &pady0));
    TF_RETURN_IF_ERROR(c->GetAttr("pady1", &pady1));
    for (int64_t factor : {upx, upy, downx, downy}) {
      if (factor < 1 || factor > kMaxFactor) {
        return tensorflow::errors::InvalidArgument("factors must be 1 to ", kMaxFactor, ", received ",
                                                   factor);
      }
    }
    for (int64_t pad : {padx0, padx1, pady0, pady1}) TF_RETURN_IF_ERROR(check_pad(pad));
    return tensorflow::OkStatus();
  }
};

// A device computes y.
class UpFirDn2DOp : public tensorflow::OpKernel {
 public:
  explicit UpFirDn2DOp(tensorflow::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, f_.read(ctx));
  }

  void Compute(tensorflow::OpKernelContext* ctx) override {
    const tensorflow::Tensor &x = ctx->input(0), &k = ctx->input(1);
    OP_REQUIRES(ctx, x.dims() == 4 && k.dims() == 2,
                tensorflow::errors::InvalidArgument("x must have rank 4 and k rank 2, received ",
                                                    x.shape().DebugString(), " and ",
                                                    k.shape().DebugString()));
    const int64_t in_h = x.dim_size(1), in_w = x.dim_size(2), kh = k.dim_size(0), kw = k.dim_size(1);
    int64_t out_h, out_w;
    OP_REQUIRES_OK(ctx, output_size(in_h, f_.upy, f_.downy, f_.pady0, f_.pady1, kh, &out_h));
    OP_REQUIRES_OK(ctx, output_size(in_w, f_.upx, f_.downx, f_.padx0, f_.padx1, kw, &out_w));
    tensorflow::TensorShape shape;
    OP_REQUIRES_OK(ctx, make_shape(x.dim_size(0), out_h, out_w, x.dim_size(3), &shape));
    tensorflow::Tensor* y = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, shape, &y));
    if (y->NumElements() == 0) return;
    run(ctx, {x.data(), k.flat<double>().data(), y->data(), x.dim_size(0), in_h, in_w, x.dim_size(3), out_h,
              out_w, kh, kw, f_.upx, f_.upy, f_.downx, f_.downy, f_.padx0, f_.pady0});
  }

 protected:
  virtual void run(tensorflow::OpKernelContext* ctx, const UpFirDnArgs& args) const = 0;

 private:
  UpFirDnFactors f_;
};

}  // namespace stylegan

#endif  // STYLEGAN_UPFIRDN_2D_OP_H_
