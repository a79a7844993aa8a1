// The operation StyleganUpFirDn2D: registration, checks, CPU kernel.
//
// x [major, inH, inW, minor] is upsampled by (upy, upx) by inserting zeros behind each sample, padded with
// zeros (a negative pad crops), convolved with k [kh, kw] (a true convolution: k is flipped), and of the result
// every (downy, downx)-th sample is kept: y [major, outH, outW, minor] with
// outH = (inH·upy + pady0 + pady1 - kh) // downy + 1, outW likewise. k is in host memory.
//
// Eager mode does not call shape functions: what protects memory is checked when the operation runs.

#include <cstdint>

#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"
#include "tf_types.h"
#include "upfirdn_2d_cpu.h"
#include "upfirdn_2d_size.h"

namespace {

using stylegan::output_size;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

constexpr int64_t kMaxFactor = 1 << 10;

struct Factors {
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
        return InvalidArgument("factors must be 1 to ", kMaxFactor, ", received ", factor);
      }
    }
    for (int64_t pad : {padx0, padx1, pady0, pady1}) TF_RETURN_IF_ERROR(stylegan::check_pad(pad));
    return tensorflow::OkStatus();
  }
};

REGISTER_OP("StyleganUpFirDn2D")
    .Input("x: T")
    .Input("k: double")
    .Output("y: T")
    .Attr("T: {float, double, half, bfloat16}")
    .Attr("upx: int = 1")
    .Attr("upy: int = 1")
    .Attr("downx: int = 1")
    .Attr("downy: int = 1")
    .Attr("padx0: int = 0")
    .Attr("padx1: int = 0")
    .Attr("pady0: int = 0")
    .Attr("pady1: int = 0")
    .SetShapeFn([](InferenceContext* c) {
      Factors f;
      ShapeHandle x, k;
      TF_RETURN_IF_ERROR(f.read(c));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &x));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &k));
      DimensionHandle height = c->UnknownDim(), width = c->UnknownDim();
      int64_t size;
      if (c->ValueKnown(c->Dim(x, 1)) && c->ValueKnown(c->Dim(k, 0))) {
        TF_RETURN_IF_ERROR(output_size(c->Value(c->Dim(x, 1)), f.upy, f.downy, f.pady0, f.pady1,
                                       c->Value(c->Dim(k, 0)), &size));
        height = c->MakeDim(size);
      }
      if (c->ValueKnown(c->Dim(x, 2)) && c->ValueKnown(c->Dim(k, 1))) {
        TF_RETURN_IF_ERROR(output_size(c->Value(c->Dim(x, 2)), f.upx, f.downx, f.padx0, f.padx1,
                                       c->Value(c->Dim(k, 1)), &size));
        width = c->MakeDim(size);
      }
      c->set_output(0, c->MakeShape({c->Dim(x, 0), height, width, c->Dim(x, 3)}));
      return tensorflow::OkStatus();
    });

template <typename T>
class UpFirDn2DOp : public OpKernel {
 public:
  explicit UpFirDn2DOp(OpKernelConstruction* ctx) : OpKernel(ctx) { OP_REQUIRES_OK(ctx, f_.read(ctx)); }

  void Compute(OpKernelContext* ctx) override {
    const Tensor &x = ctx->input(0), &k = ctx->input(1);
    OP_REQUIRES(ctx, x.dims() == 4 && k.dims() == 2,
                InvalidArgument("x must have rank 4 and k rank 2, received ", x.shape().DebugString(), " and ",
                                k.shape().DebugString()));
    int64_t out_h, out_w;
    OP_REQUIRES_OK(ctx, output_size(x.dim_size(1), f_.upy, f_.downy, f_.pady0, f_.pady1, k.dim_size(0), &out_h));
    OP_REQUIRES_OK(ctx, output_size(x.dim_size(2), f_.upx, f_.downx, f_.padx0, f_.padx1, k.dim_size(1), &out_w));
    TensorShape shape;  // Grown by one dimension at a time: each checks for overflow.
    for (int64_t size : {x.dim_size(0), out_h, out_w, x.dim_size(3)}) {
      OP_REQUIRES_OK(ctx, shape.AddDimWithStatus(size));
    }
    Tensor* y = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, shape, &y));
    if (y->NumElements() == 0) return;
    const stylegan::UpFirDn2D<typename stylegan::Storage<T>::type> kernel(
        {x.data(), k.flat<double>().data(), y->data(), x.dim_size(0), x.dim_size(1), x.dim_size(2),
         x.dim_size(3), out_h, out_w, k.dim_size(0), k.dim_size(1), f_.upx, f_.upy, f_.downx, f_.downy, f_.padx0,
         f_.pady0});
    const auto& workers = *ctx->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(workers.num_threads, workers.workers, x.dim_size(0) * out_h, kernel.row_cost(),
                      [&](int64_t first, int64_t last) { kernel.run(first, last); });
  }

 private:
  Factors f_;
};

#define REGISTER(T)                                                                                        \
  REGISTER_KERNEL_BUILDER(Name("StyleganUpFirDn2D").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), \
                          UpFirDn2DOp<T>)
REGISTER(float);
REGISTER(double);
REGISTER(Eigen::half);
REGISTER(Eigen::bfloat16);
#undef REGISTER

}  // namespace
