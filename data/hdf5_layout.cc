#include "data/hdf5_layout.h"

#include <hdf5.h>

#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ops/check.h"

namespace thimble {
namespace {

// Debian's HDF5 is not built for threads.
std::mutex& Hdf5Mutex() {
  static std::mutex mutex;
  return mutex;
}

// Closes an HDF5 identifier.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  bool ok() const { return id_ >= 0; }
  operator hid_t() const { return id_; }  // NOLINT(google-explicit-constructor)
  herr_t Close() { return close_(std::exchange(id_, -1)); }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

hid_t StoredType(Hdf5Type type) {
  switch (type) {
    case Hdf5Type::kF32:
      return H5T_IEEE_F32LE;
    case Hdf5Type::kF64:
      return H5T_IEEE_F64LE;
    case Hdf5Type::kI32:
      return H5T_STD_I32LE;
    case Hdf5Type::kI64:
      return H5T_STD_I64LE;
    case Hdf5Type::kU8:
      return H5T_STD_U8LE;
    case Hdf5Type::kU16:
      return H5T_STD_U16LE;
    case Hdf5Type::kText:
      return H5T_C_S1;
  }
  return -1;
}

// The innermost message of HDF5's error stack, which is the cause.
std::string Hdf5Cause() {
  std::string cause = "unknown cause";
  auto walk = [](unsigned depth, const H5E_error2_t* error, void* out) -> herr_t {
    if (depth == 0 && error->desc != nullptr) *static_cast<std::string*>(out) = error->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, walk, &cause);
  return cause;
}

absl::Status Hdf5Error(const char* action, const std::string& path) {
  return absl::UnknownError(absl::StrCat("cannot ", action, " ", path, ": HDF5: ", Hdf5Cause()));
}

// The writer works on a file of its own and readers on one that is never changed: no locks, which some disks lack.
hid_t FileAccess() {
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_file_locking(access, false, true);
  return access;
}

Handle MakeSpace(const std::vector<int64_t>& shape) {
  if (shape.empty()) return Handle(H5Screate(H5S_SCALAR), H5Sclose);
  const std::vector<hsize_t> extents(shape.begin(), shape.end());
  return Handle(H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr), H5Sclose);
}

// Describes one dataset; false when it is not of a kind that Hdf5Writer makes.
bool DescribeDataset(hid_t dataset, int64_t file_bytes, Hdf5LayoutEntry* entry) {
  const Handle type(H5Dget_type(dataset), H5Tclose);
  const Handle space(H5Dget_space(dataset), H5Sclose);
  if (!type.ok() || !space.ok()) return false;
  const int rank = H5Sget_simple_extent_ndims(space);
  if (rank < 0 || rank > 2) return false;
  hsize_t extents[2] = {0, 0};
  H5Sget_simple_extent_dims(space, extents, nullptr);
  for (int i = 0; i < rank; ++i) {
    if (extents[i] > (hsize_t{1} << 40)) return false;
    entry->shape.push_back(static_cast<int64_t>(extents[i]));
  }
  if (H5Tget_class(type) == H5T_STRING) {
    if (rank != 0 || H5Tis_variable_str(type) > 0) return false;
    entry->type = Hdf5Type::kText;
    entry->shape = {static_cast<int64_t>(H5Tget_size(type))};
  } else {
    int found = -1;
    for (int i = 0; i < static_cast<int>(Hdf5Type::kText); ++i) {
      if (H5Tequal(type, StoredType(static_cast<Hdf5Type>(i))) > 0) found = i;
    }
    if (found < 0) return false;
    entry->type = static_cast<Hdf5Type>(found);
  }
  const int64_t elements = Hdf5Elements(entry->shape);
  if (elements < 0) return false;
  const int64_t bytes = elements * Hdf5TypeBytes(entry->type);
  if (bytes == 0) return true;
  const haddr_t offset = H5Dget_offset(dataset);
  if (offset == HADDR_UNDEF || bytes > file_bytes) return false;
  if (offset > static_cast<haddr_t>(file_bytes - bytes)) return false;
  entry->offset = static_cast<int64_t>(offset);
  return true;
}

struct Visit {
  int64_t file_bytes;
  std::vector<Hdf5LayoutEntry>* entries;
  std::string bad;
};

herr_t VisitObject(hid_t root, const char* name, const H5O_info_t* info, void* data) {
  auto* visit = static_cast<Visit*>(data);
  if (info->type == H5O_TYPE_GROUP) return 0;
  Hdf5LayoutEntry entry;
  const Handle dataset(H5Dopen2(root, name, H5P_DEFAULT), H5Dclose);
  if (info->type != H5O_TYPE_DATASET || !dataset.ok() || !DescribeDataset(dataset, visit->file_bytes, &entry)) {
    visit->bad = name;
    return 1;
  }
  entry.name = name;
  visit->entries->push_back(std::move(entry));
  return 0;
}

}  // namespace

int64_t Hdf5Elements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) {
    if (extent < 0 || extent > (int64_t{1} << 40)) return -1;
    if (extent != 0 && count > (int64_t{1} << 58) / extent) return -1;
    count *= extent;
  }
  return count;
}

absl::Status CreateHdf5Layout(const std::string& path, std::vector<Hdf5LayoutEntry>* entries) {
  std::lock_guard<std::mutex> lock(Hdf5Mutex());
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  const Handle create(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  H5Pset_userblock(create, kHdf5UserBlockBytes);
  const Handle links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(links, 1);
  const Handle layout(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_layout(layout, H5D_CONTIGUOUS);
  H5Pset_alloc_time(layout, H5D_ALLOC_TIME_EARLY);
  H5Pset_fill_time(layout, H5D_FILL_TIME_NEVER);
  // Times of creation would make equal contents differ.
  H5Pset_obj_track_times(layout, false);

  const Handle access(FileAccess(), H5Pclose);
  Handle file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, create, access), H5Fclose);
  if (!file.ok()) return Hdf5Error("create", path);
  for (Hdf5LayoutEntry& entry : *entries) {
    const bool is_text = entry.type == Hdf5Type::kText;
    const Handle type(H5Tcopy(StoredType(entry.type)), H5Tclose);
    if (is_text) {
      H5Tset_size(type, static_cast<size_t>(entry.shape[0]));
      H5Tset_strpad(type, H5T_STR_NULLPAD);
      H5Tset_cset(type, H5T_CSET_UTF8);
    }
    const Handle space = MakeSpace(is_text ? std::vector<int64_t>{} : entry.shape);
    const Handle dataset(H5Dcreate2(file, entry.name.c_str(), type, space, links, layout, H5P_DEFAULT), H5Dclose);
    if (!dataset.ok()) return Hdf5Error(absl::StrCat("lay out '", entry.name, "' in").c_str(), path);
    const haddr_t offset = H5Dget_offset(dataset);
    const bool empty = Hdf5Elements(entry.shape) == 0;
    if (!empty && offset == HADDR_UNDEF) return Hdf5Error(absl::StrCat("place '", entry.name, "' in").c_str(), path);
    entry.offset = empty ? 0 : static_cast<int64_t>(offset);
  }
  if (file.Close() < 0) return Hdf5Error("write", path);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Hdf5LayoutEntry>> ReadHdf5Layout(const std::string& path, int64_t file_bytes) {
  std::lock_guard<std::mutex> lock(Hdf5Mutex());
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  const Handle access(FileAccess(), H5Pclose);
  const Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access), H5Fclose);
  if (!file.ok()) return absl::DataLossError(absl::StrCat(path, " is damaged: HDF5: ", Hdf5Cause()));
  std::vector<Hdf5LayoutEntry> entries;
  Visit visit{file_bytes, &entries, ""};
  const herr_t result = H5Ovisit2(file, H5_INDEX_NAME, H5_ITER_INC, VisitObject, &visit, H5O_INFO_BASIC);
  if (!visit.bad.empty()) {
    return absl::DataLossError(absl::StrCat(path, ": '", visit.bad, "' is not an entry that Thimble writes"));
  }
  if (result < 0) return absl::DataLossError(absl::StrCat(path, " is damaged: HDF5: ", Hdf5Cause()));
  return entries;
}

}  // namespace thimble
