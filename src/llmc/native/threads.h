// Tasks 0..count-1 on some threads. Which thread runs which task never shows in a result.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace llmc {

// Runs task(i, thread) for all i, `thread` below `threads`. Raises what the first failing task by number raised.
template <typename Task>
void parallel_on(std::size_t count, unsigned threads, const Task& task) {
    if (threads <= 1 || count <= 1) {
        for (std::size_t i = 0; i < count; ++i) task(i, std::size_t{0});
        return;
    }
    std::atomic<std::size_t> next{0};
    std::vector<std::exception_ptr> failures(count);
    const auto work = [&](std::size_t thread) {
        for (std::size_t i = next++; i < count; i = next++) {
            try {
                task(i, thread);
            } catch (...) {
                failures[i] = std::current_exception();
            }
        }
    };
    std::vector<std::thread> others;
    const std::size_t wanted = std::min<std::size_t>(threads, count) - 1;
    try {
        while (others.size() < wanted) others.emplace_back(work, others.size() + 1);
    } catch (const std::system_error&) {
        // The system gives no more threads: those that run do all the work.
    }
    work(0);
    for (std::thread& other : others) other.join();
    for (const std::exception_ptr& failure : failures)
        if (failure) std::rethrow_exception(failure);
}

// The same for tasks that do not ask where they run.
template <typename Task>
void parallel(std::size_t count, unsigned threads, const Task& task) {
    parallel_on(count, threads, [&task](std::size_t i, std::size_t) { task(i); });
}

}  // namespace llmc
