// Event messages, record framing, and the file.
#include "trainer/tensorboard_writer.h"

#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "data/checksum.h"
#include "data/file.h"
#include "ops/check.h"
#include "trainer/tensorboard_event.pb.h"

namespace thimble {
namespace {

void AppendLittleEndian(uint64_t value, int bytes, std::string* out) {
  for (int i = 0; i < bytes; ++i) out->push_back(static_cast<char>(value >> (8 * i) & 0xff));
}

// Rotation and constant keep the checksum of data that holds checksums from being degenerate.
uint32_t MaskedCrc(const std::string& bytes) {
  const uint32_t crc = Crc32c(bytes.data(), bytes.size());
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

double Now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

std::string Framed(const tensorboard::Event& event) { return TensorBoardRecord(event.SerializeAsString()); }

}  // namespace

std::string TensorBoardRecord(const std::string& payload) {
  std::string length, record;
  AppendLittleEndian(payload.size(), 8, &length);
  record = length;
  AppendLittleEndian(MaskedCrc(length), 4, &record);
  record += payload;
  AppendLittleEndian(MaskedCrc(payload), 4, &record);
  return record;
}

std::string TensorBoardHeader(double wall_time) {
  tensorboard::Event event;
  event.set_wall_time(wall_time);
  event.set_file_version("brain.Event:2");
  return Framed(event);
}

std::string TensorBoardScalars(double wall_time, int64_t step,
                               const std::vector<std::pair<std::string, double>>& scalars) {
  tensorboard::Event event;
  event.set_wall_time(wall_time);
  event.set_step(step);
  for (const auto& [tag, number] : scalars) {
    tensorboard::Summary::Value* value = event.mutable_summary()->add_value();
    value->set_tag(tag);
    value->set_simple_value(static_cast<float>(number));
  }
  return Framed(event);
}

std::string TensorBoardRestart(double wall_time, int64_t step) {
  tensorboard::Event event;
  event.set_wall_time(wall_time);
  event.set_step(step);
  event.mutable_session_log()->set_status(tensorboard::SessionLog::START);
  return Framed(event);
}

absl::StatusOr<std::unique_ptr<TensorBoardWriter>> TensorBoardWriter::Open(const std::string& folder,
                                                                           int64_t first_step) {
  char host[256] = "localhost";
  ::gethostname(host, sizeof(host) - 1);
  const std::string stem =
      absl::StrCat("events.out.tfevents.", static_cast<int64_t>(Now()), ".", host, ".", ::getpid());
  // TensorBoard reads the files of a folder in the order of their names: a second run within the same second must
  // come behind the first.
  std::string path;
  std::FILE* file = nullptr;
  for (int i = 0; file == nullptr; ++i) {
    path = (std::filesystem::path(folder) / absl::StrCat(stem, ".", i)).string();
    file = std::fopen(path.c_str(), "wbx");
    if (file == nullptr && errno != EEXIST) return ErrnoStatus("create", path);
  }
  std::unique_ptr<TensorBoardWriter> writer(new TensorBoardWriter(path, file));
  RETURN_IF_ERROR(writer->Append(TensorBoardHeader(Now())));
  if (first_step > 1) RETURN_IF_ERROR(writer->Append(TensorBoardRestart(Now(), first_step)));
  return writer;
}

TensorBoardWriter::~TensorBoardWriter() { std::fclose(file_); }

absl::Status TensorBoardWriter::Write(int64_t step, const std::vector<std::pair<std::string, double>>& scalars) {
  return Append(TensorBoardScalars(Now(), step, scalars));
}

absl::Status TensorBoardWriter::Append(const std::string& record) {
  if (std::fwrite(record.data(), 1, record.size(), file_) != record.size() || std::fflush(file_) != 0) {
    return ErrnoStatus("write", path_);
  }
  return absl::OkStatus();
}

}  // namespace thimble
