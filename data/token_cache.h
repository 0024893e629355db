// Datasets tokenised once: an HDF5 file named by the SHA-256 of everything that shapes the tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/dataset.h"
#include "data/row_encoder.h"
#include "data/token_rows.h"

namespace thimble {

struct TokenisedDataset {
  std::shared_ptr<const TokenRows> rows;
  RowForm form = RowForm::kAuto;  // the given one or the recognised one; never kAuto after TokeniseDataset
  std::string description;        // the form, and how it was found
  std::string fingerprint;        // SHA-256 over file contents, tokenizer, format, options; for checkpoints
  bool from_cache = false;
  std::string cache_file;  // empty: no cache
  std::string warning;     // e.g. a damaged cache file that was rebuilt; empty: none
};

// Content hash of data files, `tokenizer_file`, format, loss_on, options and cache version.
absl::StatusOr<std::string> DatasetFingerprint(const DatasetOptions& options, const RowEncoder& encoder,
                                               const std::string& tokenizer_file);

// Tokenises all rows, or reads them from `cache_folder`/<fingerprint>.h5. An empty folder name: no cache, all in
// memory; with a cache, tokens go through the file and memory stays bounded. A damaged cache file is rebuilt with a
// warning; two processes may write the same file. When the cache cannot be written (folder not writable, disk full)
// the rows are kept in memory and the warning says so.
absl::StatusOr<TokenisedDataset> TokeniseDataset(const DatasetOptions& options, const RowEncoder& encoder,
                                                 const std::string& tokenizer_file, const std::string& cache_folder);

}  // namespace thimble
