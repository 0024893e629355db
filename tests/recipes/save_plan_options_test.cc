#include "recipes/save_plan_options.h"

#include "gtest/gtest.h"

namespace thimble {
namespace {

using recipe::Memory;

TEST(SavePlanOptionsTest, ActionsSpansAndExceptions) {
  Memory memory;
  EXPECT_EQ(SavePlanOf(memory, 4)->Text(4), "keep");
  memory.set_activations(Memory::ACTIVATIONS_OFFLOAD_HOST);
  EXPECT_EQ(SavePlanOf(memory, 4)->Text(4), "offload_host/offload_host");
  memory.set_activations(Memory::ACTIVATIONS_RECOMPUTE);
  EXPECT_EQ(SavePlanOf(memory, 4)->Text(4), "recompute");
  memory.set_boundaries(Memory::ACTIVATIONS_OFFLOAD_DISK);
  memory.set_boundary_span(2);
  EXPECT_EQ(SavePlanOf(memory, 4)->Text(4),
            "0 recompute/recompute; 1 recompute/offload_disk; 2 recompute/recompute; 3 recompute/offload_disk");
  memory.set_boundary_span(1);
  memory.add_layers("1-2 keep");
  memory.add_layers("3  recompute/offload_host");
  EXPECT_EQ(SavePlanOf(memory, 4)->Text(4), "0 recompute/offload_disk; 1-2 keep; 3 recompute/offload_host");
}

TEST(SavePlanOptionsTest, KindsOfValues) {
  Memory memory;
  memory.set_activations(Memory::ACTIVATIONS_RECOMPUTE);
  memory.set_attention(Memory::ACTIVATIONS_KEEP);
  memory.set_boundary_span(2);
  EXPECT_EQ(SavePlanOf(memory, 2)->Text(2), "0 recompute/recompute attention=keep; 1 recompute attention=keep");
  memory.set_boundary_span(1);
  memory.set_elementwise(Memory::ACTIVATIONS_OFFLOAD_HOST);
  // What a text says is read as the same.
  for (const char* text : {"recompute attention=keep elementwise=offload_host", "keep elementwise=recompute",
                           "offload_host/recompute attention=keep"}) {
    memory.clear_layers();
    memory.add_layers("0-3 " + std::string(text));
    EXPECT_EQ(SavePlanOf(memory, 4)->Text(4), text);
  }
}

TEST(SavePlanOptionsTest, MalformedExceptionsAreRefusedWithTheirText) {
  for (const char* entry :
       {"", "keep", "0-1", "0-1 kept", "4 keep", "2-1 keep", "-1 keep", "a keep", "0-1-2 keep", "0 keep/keep/keep",
        "0 keep extra", "0 keep attention", "0 keep attention=", "0 keep norms=keep", "0 keep elementwise=kept"}) {
    Memory memory;
    memory.add_layers(entry);
    const absl::Status status = SavePlanOf(memory, 4).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << entry;
    EXPECT_NE(std::string(status.message()).find("memory.layers: \"" + std::string(entry) + "\""), std::string::npos)
        << status;
  }
}

}  // namespace
}  // namespace thimble
