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

// Runs task(i) for all i. Raises what the first failing task by number raised.
template <typename Task>
void parallel(std::size_t count, unsigned threads, const Task& task) {
    if (threads <= 1 || count <= 1) {
        for (std::size_t i = 0; i < count; ++i) task(i);
        return;
    }
    std::atomic<std::size_t> next{0};
    std::vector<std::exception_ptr> failures(count);
    const auto work = [&] {
        for (std::size_t i = next++; i < count; i = next++) {
            try {
                task(i);
            } catch (...) {
                failures[i] = std::current_exception();
            }
        }
    };
    std::vector<std::thread> others;
    const std::size_t wanted = std::min<std::size_t>(threads, count) - 1;
    try {
        while (others.size() < wanted) others.emplace_back(work);
    } catch (const std::system_error&) {
        // The system gives no more threads: those that run do all the work.
    }
    work();
    for (std::thread& other : others) other.join();
    for (const std::exception_ptr& failure : failures)
        if (failure) std::rethrow_exception(failure);
}

}  // namespace llmc
