// Tile instructions of AMX for kernels. The compiler sees no AMX: they are assembly with a memory clobber, as its
// intrinsics do not say which memory they touch. Inside an AmxScope (ops/amx_panel.h). The product of two tiles is each
// kernel's own instruction.
#pragma once

#define THIMBLE_TILE_LOAD(tile, from, stride) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(stride) : "memory")
// For what is read once while other tiles stay in the first-level cache.
#define THIMBLE_TILE_LOAD_ONCE(tile, from, stride) \
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(stride) : "memory")
#define THIMBLE_TILE_STORE(tile, to, stride) \
  __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"(stride) : "memory")
#define THIMBLE_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : :)
