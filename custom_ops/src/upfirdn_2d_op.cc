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
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"
#include "tf_types.h"
#include "upfirdn_2d_op.h"

namespace {

using stylegan::output_size;
using tensorflow::OpKernelContext;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

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
      stylegan::UpFirDnFactors f;
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
class CpuUpFirDn2DOp : public stylegan::UpFirDn2DOp {
 public:
  using UpFirDn2DOp::UpFirDn2DOp;

 protected:
  void run(OpKernelContext* ctx, const stylegan::UpFirDnArgs& args) const override {
    const stylegan::UpFirDn2D<typename stylegan::Storage<T>::type> kernel(args);
    const auto& workers = *ctx->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(workers.num_threads, workers.workers, args.major * args.out_h, kernel.row_cost(),
                      [&](int64_t first, int64_t last) { kernel.run(first, last); });
  }
};

#define REGISTER(T)                                                                                        \
  REGISTER_KERNEL_BUILDER(Name("StyleganUpFirDn2D").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), \
                          CpuUpFirDn2DOp<T>)
REGISTER(float);
REGISTER(double);
REGISTER(Eigen::half);
REGISTER(Eigen::bfloat16);
#undef REGISTER

}  // namespace
