#include "data/token_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "data/byte_source.h"
#include "data/checksum.h"
#include "data/file.h"
#include "data/gguf_tokenizer.h"
#include "ops/check.h"
#include "ops/parallel.h"

namespace thimble {
namespace {

// Raised whenever the same input would give other tokens or another layout.
constexpr const char* kCacheVersion = "thimble-tokens-2";
constexpr int64_t kBatchBytes = int64_t{4} << 20;
constexpr int64_t kBatchRows = 4096;

absl::Status HashFile(const std::string& path, Sha256* hash) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus("open", path);
  std::vector<char> buffer(1 << 20);
  int64_t total = 0;
  ssize_t count = 0;
  while ((count = ::read(fd, buffer.data(), buffer.size())) != 0) {
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) break;
    hash->Update(std::string_view(buffer.data(), static_cast<size_t>(count)));
    total += count;
  }
  absl::Status status = count < 0 ? ErrnoStatus("read", path) : absl::OkStatus();
  ::close(fd);
  // The length ends the file's bytes, as UpdateField's does a field's.
  hash->UpdateField(absl::StrCat(total));
  return status;
}

// Sizes and times of change of files: whether they were written to meanwhile.
std::string FileTimes(const std::vector<std::string>& files) {
  std::string times;
  for (const std::string& path : files) {
    struct stat info {};
    ::stat(path.c_str(), &info);
    absl::StrAppend(&times, info.st_ino, ",", info.st_size, ",", info.st_mtim.tv_sec, ".", info.st_mtim.tv_nsec, ";");
  }
  return times;
}

// Token ids and masks on disk while their number is not known; the files have no names, so that none is left behind.
class Spool {
 public:
  ~Spool() {
    if (tokens_ >= 0) ::close(tokens_);
    if (masks_ >= 0) ::close(masks_);
  }
  absl::Status Open(const std::string& folder) {
    for (int* fd : {&tokens_, &masks_}) {
      std::string name = folder + "/spool-XXXXXX";
      *fd = ::mkostemp(name.data(), O_CLOEXEC);
      if (*fd < 0) return ErrnoStatus("create a file in", folder);
      ::unlink(name.c_str());
    }
    folder_ = folder;
    return absl::OkStatus();
  }
  absl::Status Append(const std::vector<int32_t>& tokens, const std::vector<uint8_t>& masks) {
    RETURN_IF_ERROR(WriteAll(tokens_, reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(int32_t)));
    return WriteAll(masks_, reinterpret_cast<const char*>(masks.data()), masks.size());
  }
  Hdf5Writer::Source Tokens() const { return Source(tokens_); }
  Hdf5Writer::Source Masks() const { return Source(masks_); }

 private:
  absl::Status WriteAll(int fd, const char* data, size_t size) {
    while (size > 0) {
      const ssize_t count = ::write(fd, data, size);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return ErrnoStatus("write a file in", folder_);
      data += count;
      size -= static_cast<size_t>(count);
    }
    return absl::OkStatus();
  }
  Hdf5Writer::Source Source(int fd) const {
    return [fd, folder = folder_](int64_t first_byte, absl::Span<char> out) -> absl::Status {
      while (!out.empty()) {
        const ssize_t count = ::pread(fd, out.data(), out.size(), first_byte);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return ErrnoStatus("read a file in", folder);
        out.remove_prefix(static_cast<size_t>(count));
        first_byte += count;
      }
      return absl::OkStatus();
    };
  }

  std::string folder_;
  int tokens_ = -1;
  int masks_ = -1;
};

// Reads and encodes all rows in order; several at a time, since encoding is independent. With a spool, tokens go there
// and `rows` keeps lengths and counts. Errors of the spool are told apart from those of the data by `spool_status`.
absl::Status EncodeAll(const DatasetOptions& options, const RowEncoder& encoder, Spool* spool, TokenRows* rows,
                       TokenisedDataset* dataset, absl::Status* spool_status) {
  ASSIGN_OR_RETURN(const std::unique_ptr<DatasetReader> reader, DatasetReader::Open(options));
  dataset->form = reader->form();
  dataset->description = reader->description();
  bool continued = false;
  for (bool more = true; more;) {
    std::vector<Row> batch;
    std::vector<uint8_t> continues_last;
    for (int64_t bytes = 0; bytes < kBatchBytes && static_cast<int64_t>(batch.size()) < kBatchRows;) {
      Row row;
      ASSIGN_OR_RETURN(more, reader->Next(&row));
      if (!more) break;
      bytes += static_cast<int64_t>(row.text.size() + row.input.size());
      for (const Message& message : row.messages) bytes += static_cast<int64_t>(message.content.size());
      continues_last.push_back(continued ? 1 : 0);
      continued = row.continues;
      batch.push_back(std::move(row));
    }
    std::vector<absl::StatusOr<EncodedRow>> encoded(batch.size(), EncodedRow());
    ParallelFor(static_cast<int64_t>(batch.size()),
                [&](int64_t i, int) { encoded[i] = encoder.Encode(batch[i], continues_last[i] != 0); });
    for (size_t i = 0; i < batch.size(); ++i) {
      if (!encoded[i].ok()) {
        return absl::InvalidArgumentError(absl::StrCat(options.files[batch[i].file], ":", batch[i].line, ": ",
                                                       std::string(encoded[i].status().message())));
      }
      continues_last[i] != 0 ? rows->ExtendLast(*encoded[i]) : rows->Append(*encoded[i]);
    }
    if (spool == nullptr) continue;
    std::vector<int32_t> tokens;
    std::vector<uint8_t> masks;
    rows->TakePayload(&tokens, &masks);
    *spool_status = spool->Append(tokens, masks);
    RETURN_IF_ERROR(*spool_status);
  }
  return absl::OkStatus();
}

// The rows of a cache file of this very data.
absl::StatusOr<TokenRows> ReadCache(const std::string& path, TokenisedDataset* dataset) {
  ASSIGN_OR_RETURN(Hdf5Reader file, Hdf5Reader::Open(path));
  ASSIGN_OR_RETURN(const std::string stored, file.Text("fingerprint"));
  if (stored != dataset->fingerprint) return absl::DataLossError(absl::StrCat(path, " holds the tokens of other data"));
  ASSIGN_OR_RETURN(dataset->description, file.Text("description"));
  ASSIGN_OR_RETURN(const std::string form, file.Text("form"));
  ASSIGN_OR_RETURN(dataset->form, ParseRowForm(form));
  return TokenRows::FromFile(std::move(file));
}

// Tokenises into the cache file and reads it back. `cache_status` receives what kept the cache from being written.
absl::StatusOr<TokenRows> WriteCache(const DatasetOptions& options, const RowEncoder& encoder, const std::string& path,
                                     TokenisedDataset* dataset, absl::Status* cache_status) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  Spool spool;
  *cache_status = spool.Open(folder);
  RETURN_IF_ERROR(*cache_status);
  TokenRows index;
  RETURN_IF_ERROR(EncodeAll(options, encoder, &spool, &index, dataset, cache_status));
  Hdf5Writer writer;
  writer.AddText("fingerprint", dataset->fingerprint);
  writer.AddText("description", dataset->description);
  writer.AddText("form", RowFormName(dataset->form));
  index.AddIndexTo(&writer);
  writer.AddArray("tokens", Hdf5Type::kI32, {index.total_tokens()}, spool.Tokens());
  writer.AddArray("is_target", Hdf5Type::kU8, {index.total_tokens()}, spool.Masks());
  // Each process writes beside under a name of its own; the last rename wins, and both files are equal.
  *cache_status = writer.Commit(path, absl::StrCat(path, ".", ::getpid(), ".tmp"));
  RETURN_IF_ERROR(*cache_status);
  absl::StatusOr<TokenRows> rows = ReadCache(path, dataset);
  *cache_status = rows.status();
  return rows;
}

}  // namespace

absl::StatusOr<std::string> DatasetFingerprint(const DatasetOptions& options, const RowEncoder& encoder,
                                               const std::string& tokenizer_file) {
  Sha256 hash;
  hash.UpdateField(kCacheVersion);
  if (IsGgufFile(tokenizer_file)) {
    // Weights do not matter.
    ASSIGN_OR_RETURN(const GgufHeader header, ReadGgufHeader(tokenizer_file));
    ASSIGN_OR_RETURN(const nlohmann::json tokenizer, GgufTokenizerJson(header));
    hash.UpdateField(tokenizer.dump());
  } else {
    RETURN_IF_ERROR(HashFile(tokenizer_file, &hash));
  }
  const ModelTokens& tokens = encoder.tokens();
  hash.UpdateField(absl::StrCat(tokens.bos_id, " ", tokens.eos_id, " ", int{tokens.add_bos}, " ",
                                static_cast<int>(encoder.loss_on())));
  hash.UpdateField(encoder.format().Fingerprint());
  hash.UpdateField(absl::StrCat(RowFormName(options.form), " ", options.first_row, " ", options.max_rows));
  const ColumnNames& names = options.columns;
  for (const std::string* field :
       {&names.instruction, &names.input, &names.output, &names.system, &names.messages, &names.role, &names.content,
        &names.prompt, &names.completion, &names.text, &options.text_separator}) {
    hash.UpdateField(*field);
  }
  for (const std::string& path : options.files) {
    // The ending says how a file is read; its name and folder do not matter.
    std::filesystem::path name(path);
    if (name.extension() == ".zst") name = name.stem();
    hash.UpdateField(name.extension().string());
    RETURN_IF_ERROR(HashFile(path, &hash));
  }
  return hash.HexDigest();
}

absl::StatusOr<TokenisedDataset> TokeniseDataset(const DatasetOptions& options, const RowEncoder& encoder,
                                                 const std::string& tokenizer_file, const std::string& cache_folder) {
  TokenisedDataset dataset;
  const std::string times = FileTimes(options.files);
  ASSIGN_OR_RETURN(dataset.fingerprint, DatasetFingerprint(options, encoder, tokenizer_file));
  if (!cache_folder.empty()) {
    const std::string path = absl::StrCat(cache_folder, "/", dataset.fingerprint, ".h5");
    absl::StatusOr<TokenRows> rows = ReadCache(path, &dataset);
    dataset.from_cache = rows.ok();
    if (!rows.ok()) {
      if (!absl::IsNotFound(rows.status())) {
        dataset.warning = absl::StrCat("the token cache is built anew: ", std::string(rows.status().message()));
      }
      absl::Status cache_status;
      rows = WriteCache(options, encoder, path, &dataset, &cache_status);
      if (!rows.ok() && cache_status.ok()) return rows.status();
      if (!rows.ok()) {
        dataset.warning =
            absl::StrCat("no token cache, the tokens are kept in memory: ", std::string(cache_status.message()));
      }
    }
    if (rows.ok()) {
      dataset.rows = std::make_shared<const TokenRows>(*std::move(rows));
      dataset.cache_file = path;
    }
  }
  if (dataset.rows == nullptr) {
    auto rows = std::make_shared<TokenRows>();
    absl::Status no_spool;
    RETURN_IF_ERROR(EncodeAll(options, encoder, nullptr, rows.get(), &dataset, &no_spool));
    dataset.rows = std::move(rows);
  }
  if (FileTimes(options.files) != times) {
    // The tokens may be of another content than the fingerprint.
    if (!dataset.from_cache && !dataset.cache_file.empty()) ::unlink(dataset.cache_file.c_str());
    return absl::InvalidArgumentError(absl::StrCat("a file of the data set changed while it was read; start again (",
                                                   options.files[0], options.files.size() > 1 ? ", ..." : "", ")"));
  }
  return dataset;
}

}  // namespace thimble
