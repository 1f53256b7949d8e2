// The thread pool that all programs share.
#pragma once

#include <cstddef>

namespace aioembed {

std::size_t pool_thread_count();

// Only before the first program is loaded: XNNPACK keeps the pool it finds then.
// Its threads inherit the niceness of what makes them, which is so much above the caller's.
// Returns whether the pool has that many threads now.
bool resize_pool(std::size_t threads, int niceness);

}  // namespace aioembed
