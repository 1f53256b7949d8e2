// The thread pool that all programs share.
#pragma once

#include <cstddef>

namespace aioembed {

std::size_t pool_thread_count();

// Only before the first program is loaded: XNNPACK keeps the pool it finds then.
// Returns whether the pool has that many threads now.
bool resize_pool(std::size_t threads);

}  // namespace aioembed
