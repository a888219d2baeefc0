// A block of a CUDA kernel on the CPU: each thread is a fiber of its own, switched where it waits for others. Which of
// those that can run goes on is drawn by lot (a seed a run), and some warps get far ahead of others, so that an order
// that a kernel only hopes for does not hold; what is asynchronous on the chip happens as late as the kernel allows.
// Shared memory begins as NaN.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace emulator {

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// What a fiber waits for: that (*value & mask) is no longer `unwanted`.
struct Wait {
    const unsigned* value = nullptr;
    unsigned mask = 0, unwanted = 0;
    bool over() const { return value == nullptr || (*value & mask) != unwanted; }
};

// All threads of a warp, a warpgroup or a block do one thing together; the last to come does it for all.
struct Meeting {
    std::vector<void*> offers;
    const char* what = nullptr;
    unsigned came = 0, times = 0;
};

struct Barrier {
    unsigned needed = 0, came = 0, rounds = 0;
    int64_t bytes = 0;  // still to come in this round
};

struct Fiber {
    ucontext_t context;  // where it begins
    jmp_buf place;       // where it goes on: swapcontext would ask the kernel each time
    std::unique_ptr<char[]> stack;
    bool begun = false;
    Wait wait;
    bool done = false;
    // cp.async: what was asked for since the last commit, and the committed groups.
    std::vector<std::function<void()>> copies;
    std::deque<std::vector<std::function<void()>>> groups;
};

struct Warpgroup {
    std::vector<std::function<void()>> products;
    std::deque<std::vector<std::function<void()>>> groups;
};

class Machine {
  public:
    int thread = 0, block = 0, blocks = 1;
    std::vector<unsigned char> memory;  // shared
    unsigned char* shared = nullptr;
    size_t shared_bytes = 0;
    std::map<const void*, Barrier> barriers;
    std::vector<Warpgroup> warpgroups;
    std::vector<Meeting> warps, groups;
    Meeting all;
    int64_t conflicts = 0;  // times that two rows of one matrix load lay in the same banks

    Machine(int threads, size_t bytes, unsigned seed)
        : memory(bytes + 4096),
          shared_bytes(bytes),
          warpgroups(threads / 128),
          warps(threads / 32),
          groups(threads / 128),
          fibers_(threads),
          lot_(seed) {
        // At a multiple of 16 that is none of 1024.
        const auto at = reinterpret_cast<uintptr_t>(memory.data());
        shared = memory.data() + ((at + 2047) / 1024 * 1024 - at) + 16;
        for (auto& meeting : warps)
            meeting.offers.resize(32);
        for (auto& meeting : groups)
            meeting.offers.resize(128);
        all.offers.resize(threads);
    }

    void run(const std::function<void()>& kernel) {
        std::fill(memory.begin(), memory.end(), 0xff);
        barriers.clear();
        kernel_ = &kernel;
        for (auto& fiber : fibers_) {
            fiber.stack.reset(new char[kStack]);
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = kStack;
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, enter, 0);
            fiber.begun = fiber.done = false;
        }
        current = this;
        for (size_t left = fibers_.size(); left > 0;)
            left -= round();
    }

    Fiber& me() { return fibers_[thread]; }

    void wait(Wait what) {
        if (what.over()) return;
        me().wait = what;
        leave();
    }

    // `act` is given what every member offered.
    void meet(Meeting& meeting, int index, const char* what, void* offer,
              const std::function<void(const std::vector<void*>&)>& act) {
        if (meeting.came > 0 && std::string(meeting.what) != what)
            fail(std::string("threads of a group part: ") + meeting.what + " and " + what);
        meeting.what = what;
        meeting.offers[index] = offer;
        if (++meeting.came == meeting.offers.size()) {
            act(meeting.offers);
            meeting.came = 0;
            ++meeting.times;
        } else {
            wait({&meeting.times, ~0u, meeting.times});
        }
    }

    unsigned char* in_shared(const void* place, size_t bytes, size_t align) {
        auto* at = static_cast<unsigned char*>(const_cast<void*>(place));
        if (at < shared || at + bytes > shared + shared_bytes) fail("outside shared memory");
        if (reinterpret_cast<uintptr_t>(at) % align) fail("shared memory: not aligned");
        return at;
    }

    [[noreturn]] void fail(const std::string& what) {
        throw Failure("block " + std::to_string(block) + " thread " + std::to_string(thread) + ": " + what);
    }

    static inline Machine* current = nullptr;

  private:
    static constexpr size_t kStack = 256 << 10;

    std::vector<Fiber> fibers_;
    jmp_buf back_;
    std::mt19937 lot_;
    unsigned favoured_ = 1;
    const std::function<void()>* kernel_ = nullptr;
    std::string failure_;

    static void enter() {
        Machine& machine = *current;
        try {  // an exception may not leave a fiber
            (*machine.kernel_)();
        } catch (const Failure& failure) {
            machine.failure_ = failure.what();
        }
        machine.me().done = true;
        machine.leave();
    }

    void go_on(Fiber& fiber) {
        if (_setjmp(back_) != 0) return;
        if (fiber.begun) _longjmp(fiber.place, 1);
        fiber.begun = true;
        setcontext(&fiber.context);
    }
    void leave() {
        if (_setjmp(me().place) == 0) _longjmp(back_, 1);
    }

    // Some warps, drawn by lot, go on until none of them can; then all one step, and others are drawn. So a warp gets
    // as far ahead of another as the kernel lets it. How many fibers ended.
    size_t round() {
        size_t ended = 0;
        if (pass(favoured_, &ended) > 0) return ended;
        if (pass(~0u, &ended) == 0)
            throw Failure("block " + std::to_string(block) + ": every thread waits for another");
        favoured_ = static_cast<unsigned>(lot_());
        return ended;
    }

    // Every fiber of these warps that can run does, beginning anywhere and in steps of any size; how many ran.
    size_t pass(unsigned which_warps, size_t* ended) {
        const size_t count = fibers_.size(), first = lot_() % count, step = 2 * (lot_() % count) + 1;
        size_t ran = 0;
        for (size_t i = 0; i < count; ++i) {
            const size_t which = (first + i * coprime(step)) % count;
            Fiber& fiber = fibers_[which];
            if (!(which_warps >> which / 32 & 1) || fiber.done || !fiber.wait.over()) continue;
            fiber.wait = {};
            thread = static_cast<int>(which);
            ++ran;
            go_on(fiber);
            if (!failure_.empty()) throw Failure(failure_);
            *ended += fiber.done;
        }
        return ran;
    }

    // Block sizes are 2^n or 3 * 2^n.
    static size_t coprime(size_t odd) { return odd % 3 == 0 ? odd + 2 : odd; }
};

}  // namespace emulator
