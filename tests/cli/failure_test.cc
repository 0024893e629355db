// Tiers that are missing, full, read-only or torn away, budgets that are too small, machines that are: one clear
// message, and a checkpoint that the run goes on from, bit for bit.
#include <dirent.h>
#include <fcntl.h>
#include <sys/mount.h>

#include <algorithm>
#include <functional>

#include "tests/cli/compare_runs.h"
#include "tests/cli/tiny_job.h"

namespace thimble {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

// A memory file system, where this process may mount one.
class MemoryMount {
 public:
  MemoryMount(const std::string& place, unsigned long flags, const char* options)
      : place_(place), mounted_(::mount("none", place.c_str(), "tmpfs", flags, options) == 0) {
    if (!mounted_) std::printf("no right to mount: a full and a read-only folder are not tried\n");
  }
  ~MemoryMount() {
    if (mounted_) ::umount2(place_.c_str(), MNT_DETACH);
  }
  MemoryMount(const MemoryMount&) = delete;
  MemoryMount& operator=(const MemoryMount&) = delete;
  bool mounted() const { return mounted_; }

 private:
  std::string place_;
  bool mounted_;
};

class FailureTest : public TinyJob {
 protected:
  void SetUp() override {
    TinyJob::SetUp();
    fs::create_directories(Path("spill"));
    recipe_["memory"] = {
        {"activations", "offload_disk"}, {"weights", "disk"}, {"optimizer_state", "disk"}, {"spill_folder", "spill"}};
    recipe_["data"]["seq_len"] = 96;
    recipe_["training"]["steps"] = 300;
    recipe_["training"]["save_every"] = 20;
    recipe_["training"]["eval_every"] = 0;
    WriteRecipe(recipe_);
  }

  static std::string LastMessage(const ProgramResult& result) {
    const size_t start = result.errors.rfind("thimble: ");
    return start == std::string::npos ? "" : result.errors.substr(start);
  }
  void Expect(const ProgramResult& result, int exit_code, const std::vector<std::string>& names) const {
    EXPECT_EQ(result.exit_code, exit_code) << "signal " << result.signal << "\n" << result.errors;
    EXPECT_EQ(result.Messages(), 1) << result.errors;
    for (const std::string& name : names) {
      EXPECT_NE(LastMessage(result).find(name), std::string::npos) << "no '" << name << "' in " << result.errors;
    }
  }

  // Spoils the place of the spill file in each way; `run` is to say with which exit code it ends then.
  void ForEachSpoiltFolder(const std::function<ProgramResult()>& run) {
    {
      SCOPED_TRACE("missing");
      fs::remove(Path("spill"));
      Expect(run(), 2, {Path("spill"), "no spill file can be made there", "memory.spill_folder"});
    }
    {
      SCOPED_TRACE("a file");
      Write("spill", "");
      Expect(run(), 2, {Path("spill"), "no spill file can be made there"});
      fs::remove(Path("spill"));
    }
    fs::create_directories(Path("spill"));
    {
      SCOPED_TRACE("full");
      const MemoryMount mount(Path("spill"), 0, "size=64k");
      if (mount.mounted()) Expect(run(), 3, {Path("spill"), "the spill file needs", "65536 free"});
    }
    {
      SCOPED_TRACE("read-only");
      const MemoryMount mount(Path("spill"), MS_RDONLY, "size=64k");
      if (mount.mounted()) Expect(run(), 2, {Path("spill"), "Read-only file system"});
    }
  }

  // Starts a run and returns once it has a checkpoint.
  std::unique_ptr<Program> StartUntilCheckpoint(const std::string& run) const {
    auto program = std::make_unique<Program>(
        std::vector<std::string>{"train", Path("recipe.yaml"), "--set", "output.folder=" + Path(run)},
        Path("errors.txt"));
    while (ListCheckpoints(Path(run)).empty() && !program->Ended()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return program;
  }

  std::string LastCheckpoint(const std::string& run) const {
    return FileContent(CheckpointPath(Path(run), ListCheckpoints(Path(run)).back()));
  }
};

TEST_F(FailureTest, ASpillFolderThatIsNone) {
  ForEachSpoiltFolder([this] {
    const auto before = Files();
    const ProgramResult result = Train();
    EXPECT_EQ(Files(), before);
    return result;
  });
}

TEST_F(FailureTest, AResumedRunWhoseSpillFolderIsNoneKeepsItsCheckpoint) {
  ASSERT_EQ(Train({"output.folder=" + Path("whole")}).exit_code, 0);
  const auto program = StartUntilCheckpoint("run");
  program->Signal(SIGINT);
  ASSERT_EQ(program->Wait().exit_code, 130);
  const std::string checkpoint = LastCheckpoint("run");
  ForEachSpoiltFolder([this] { return ResumeRun("run"); });
  EXPECT_TRUE(LastCheckpoint("run") == checkpoint);
  ASSERT_EQ(ResumeRun("run").exit_code, 0);
  ExpectSameEnd(Path("whole"), Path("run"), /*with_identity=*/false);
}

// Files of a process that have no name any more, opened for writing.
std::vector<int> NamelessFiles(pid_t process) {
  std::vector<int> files;
  const std::string folder = "/proc/" + std::to_string(process) + "/fd";
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string target = fs::read_symlink(entry.path(), error).string();
    if (target.find("(deleted)") == std::string::npos || target.find("spill") == std::string::npos) continue;
    const int file = ::open(entry.path().c_str(), O_RDWR);
    if (file >= 0) files.push_back(file);
  }
  return files;
}

TEST_F(FailureTest, ASpillFileTornAwayInTheMiddle) {
  ASSERT_EQ(Train({"output.folder=" + Path("whole")}).exit_code, 0);
  const auto program = StartUntilCheckpoint("run");
  const std::vector<int> files = NamelessFiles(program->pid());
  EXPECT_EQ(files.size(), 3u) << "activations, weights, optimiser state";
  while (!program->Ended()) {
    for (int file : files) EXPECT_EQ(::ftruncate(file, 0), 0);
  }
  for (int file : files) ::close(file);
  Expect(program->Wait(), 1, {Path("spill"), "the spill file failed", "thimble train --resume"});
  ASSERT_EQ(ResumeRun("run").exit_code, 0);
  ExpectSameEnd(Path("whole"), Path("run"), /*with_identity=*/false);
}

TEST_F(FailureTest, BudgetsThatNothingMeets) {
  for (const char* tier : {"host", "disk"}) {
    SCOPED_TRACE(tier);
    const auto before = Files();
    const std::string action = std::string("offload_") + tier;
    const ProgramResult result =
        Train({"memory.activations=" + action, std::string("memory.weights=") + tier,
               std::string("memory.optimizer_state=") + tier, std::string("memory.") + tier + "_budget=1000"});
    Expect(result, 3, {std::string("of the ") + tier + " tier", std::string("memory.") + tier + "_budget allows 1000"});
    EXPECT_EQ(Files(), before);
  }
  const auto before = Files();
  const ProgramResult result = Train({"memory.device_budget=1000"});
  Expect(result, 3, {"memory.device_budget allows 1000"});
  EXPECT_NE(result.errors.find("No change that was tried fits the budgets (device 0.0 MiB). The least is"),
            std::string::npos)
      << result.errors;
  EXPECT_EQ(Files(), before);
}

TEST_F(FailureTest, AMachineThatIsTooSmall) {
  json recipe = recipe_;
  recipe.erase("quantization");
  recipe.erase("adapter");
  recipe.erase("memory");
  // 16 bytes for each of 2.6e11 parameters.
  recipe["model"] = {{"tokenizer", "base/tokenizer.json"},
                     {"config",
                      {{"hidden_dim", 16384},
                       {"num_layers", 60},
                       {"num_heads", 128},
                       {"num_kv_heads", 128},
                       {"intermediate_dim", 65536}}}};
  WriteRecipe(recipe);
  const auto before = Files();
  Expect(Train(), 3, {"of memory in all", "What would lower it"});
#ifndef __SANITIZE_ADDRESS__  // whose shadow memory is above any such limit
  // A limit of the process counts as well.
  recipe["model"]["config"] = {{"hidden_dim", 1024}, {"num_layers", 8}, {"num_heads", 8}, {"intermediate_dim", 4096}};
  WriteRecipe(recipe);
  const std::vector<std::string> train = {"train", Path("recipe.yaml")};
  Expect(Program(train, Path("errors.txt"), RLIM_INFINITY, "/dev/null", rlim_t{3} << 29).Wait(), 3,
         {"ulimit -v allows 1610612736"});
#endif
  EXPECT_EQ(Files(), before);
}

}  // namespace
}  // namespace thimble
