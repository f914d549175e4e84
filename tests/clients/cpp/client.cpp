// Calls a graph: a message, a tensor, a stream, an error. Prints what came back, as JSON.
// client 127.0.0.1:50051
#include <chrono>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "services/echo/v1/echo.grpc.pb.h"

using namespace services::echo::v1;
using toolkit::v1::Tensor;
using std::chrono_literals::operator""s;

// toolkit.v1.Tensor of 32-bit floats, as protos/toolkit/v1/tensor.proto specifies it, on a little-endian machine.
Tensor tensor_of(const std::vector<float>& numbers, const std::vector<int64_t>& shape) {
  Tensor tensor;
  tensor.set_dtype(toolkit::v1::FLOAT32);
  tensor.mutable_shape()->Add(shape.begin(), shape.end());
  tensor.set_data(numbers.data(), numbers.size() * sizeof(float));
  return tensor;
}

std::vector<float> numbers_of(const Tensor& tensor) {
  const auto& shape = tensor.shape();
  const auto count = std::accumulate(shape.begin(), shape.end(), uint64_t{1}, std::multiplies<uint64_t>());
  if (tensor.dtype() != toolkit::v1::FLOAT32 || tensor.data().size() != count * sizeof(float)) {
    throw std::invalid_argument("not a tensor of FLOAT32");
  }
  std::vector<float> numbers(count);
  std::memcpy(numbers.data(), tensor.data().data(), tensor.data().size());
  return numbers;
}

// What one call needs. Its deadline travels along, to every service behind the one that is called.
std::unique_ptr<grpc::ClientContext> within(std::chrono::seconds limit) {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + limit);
  return context;
}

void check(const grpc::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.error_message());
}

int main(int, char** arguments) {
  const auto echo = Echo::NewStub(grpc::CreateChannel(arguments[1], grpc::InsecureChannelCredentials()));

  Note hello, said, refused;
  hello.set_text("hello");
  hello.add_tags("from");
  hello.add_tags("C++");
  check(echo->Say(within(20s).get(), hello, &said));

  std::vector<float> slope(32 * 48);
  for (size_t index = 0; index < slope.size(); ++index) slope[index] = index / 2.0f;
  Image image, reply;
  Line total;
  *image.mutable_pixels() = tensor_of(slope, {32, 48});
  check(echo->Total(within(20s).get(), image, &total));
  check(echo->Reflect(within(20s).get(), image, &reply));
  const Tensor& reflected = reply.pixels();

  Note again, note;
  again.set_text("again");
  again.set_times(3);
  std::vector<int64_t> numbers;
  const auto context = within(20s);
  const auto stream = echo->Repeat(context.get(), again);
  while (stream->Read(&note)) numbers.push_back(note.number());
  check(stream->Finish());

  const grpc::Status error = echo->Say(within(20s).get(), Note(), &refused);
  const bool is_expected = error.error_code() == grpc::StatusCode::FAILED_PRECONDITION;

  std::cout << "{\"said\": [\"" << said.text() << "\", \"" << said.tags(0) << "\", \"" << said.tags(1) << "\"], "
            << "\"total\": " << total.number() << ", \"reflected\": [\"" << DType_Name(reflected.dtype()) << "\", ["
            << reflected.shape(0) << ", " << reflected.shape(1) << "], " << numbers_of(reflected).back() << "], "
            << "\"numbers\": [" << numbers.at(0) << ", " << numbers.at(1) << ", " << numbers.at(2) << "], "
            << "\"error\": [\"" << (is_expected ? "FAILED_PRECONDITION" : "?") << "\", \"" << error.error_message()
            << "\"]}" << std::endl;
}
