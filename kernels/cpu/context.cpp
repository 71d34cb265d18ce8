// The library's identity, error texts and contexts.
#include "graph.h"

#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

static thread_local char last_error[1024] = "";

int32_t mantou::fail(int32_t status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return status;
}

int32_t mantou_abi_version(void) { return MANTOU_ABI_VERSION; }

const char* mantou_backend(void) { return "cpu"; }

const char* mantou_last_error(void) { return last_error; }

// ---- how many CPUs -----------------------------------------------------------------------------------------------

#if defined(__linux__)
// The first one or two whole numbers in a file; how many there were.
static int read_numbers(const char* path, long long* first, long long* second) {
  FILE* file = std::fopen(path, "re");
  if (!file) return 0;
  const int read = std::fscanf(file, "%lld %lld", first, second);
  std::fclose(file);
  return read < 0 ? 0 : read;
}

// CPUs' worth of time that one control group grants, rounded up; 0 where it sets no limit.
static int group_quota(bool unified, const char* group) {
  char path[4096];
  long long quota = 0, period = 0, unused = 0;
  if (unified) {
    std::snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", group);  // "max 100000" without a limit
    if (read_numbers(path, &quota, &period) != 2) return 0;
  } else {
    std::snprintf(path, sizeof path, "/sys/fs/cgroup/cpu%s/cpu.cfs_quota_us", group);  // -1 without a limit
    if (read_numbers(path, &quota, &unused) < 1) return 0;
    std::snprintf(path, sizeof path, "/sys/fs/cgroup/cpu%s/cpu.cfs_period_us", group);
    if (read_numbers(path, &period, &unused) < 1) return 0;
  }
  return quota > 0 && period > 0 ? static_cast<int>((quota + period - 1) / period) : 0;
}

// The least quota of this process's control groups, version 1 and 2, and of the groups around them; 0 for none.
static int cgroup_quota() {
  FILE* file = std::fopen("/proc/self/cgroup", "re");
  if (!file) return 0;
  int least = 0;
  char line[4096];
  while (std::fgets(line, sizeof line, file)) {  // hierarchy:controllers:group
    char* controllers = std::strchr(line, ':');
    char* group = controllers ? std::strchr(controllers + 1, ':') : nullptr;
    if (!group) continue;
    *group++ = '\0';
    group[std::strcspn(group, "\n")] = '\0';
    controllers++;
    const bool unified = *controllers == '\0';
    bool has_cpu = unified;
    for (const char* name = std::strtok(controllers, ","); name; name = std::strtok(nullptr, ","))
      has_cpu = has_cpu || std::strcmp(name, "cpu") == 0;
    if (!has_cpu) continue;
    for (;;) {
      const int quota = group_quota(unified, group);
      if (quota > 0 && (least == 0 || quota < least)) least = quota;
      char* slash = std::strrchr(group, '/');
      if (!slash) break;
      *slash = '\0';
    }
  }
  std::fclose(file);
  return least;
}
#endif

static int available_cpus() {
  long cpus = sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cpus = CPU_COUNT(&set);
  const int quota = cgroup_quota();
  if (quota > 0 && quota < cpus) cpus = quota;
#endif
  return cpus < 1 ? 1 : static_cast<int>(cpus);
}

// ---- contexts ----------------------------------------------------------------------------------------------------

constexpr int MAX_THREADS = 1024;

int32_t mantou_context_create(int32_t device, int32_t threads, mantou_context** context) {
  (void)device;
  CHECK_NOT_NULL(context);
  *context = nullptr;
  CHECK(threads >= 0 && threads <= MAX_THREADS,
        "%s: threads is %d; it must be 1 to %d, or 0 for as many as this process may run on", __func__, threads,
        MAX_THREADS);
  if (threads == 0) {
    threads = available_cpus();
    if (threads > MAX_THREADS) threads = MAX_THREADS;
  }
  const mantou::InstructionSet* instructions = mantou::select_instruction_set(std::getenv("MANTOU_INSTRUCTIONS"));
  if (!instructions) return MANTOU_UNSUPPORTED;
  const int64_t bytes = threads * SCRATCH_BYTES;
  void* scratch = nullptr;
  mantou_context* created = new (std::nothrow) mantou_context;
  if (!created || posix_memalign(&scratch, mantou::LARGE_PAGE, static_cast<size_t>(bytes)) != 0) {
    delete created;
    return mantou::fail(MANTOU_OUT_OF_MEMORY, "%s: no %lld bytes of scratch memory for %d threads", __func__,
                        static_cast<long long>(bytes), threads);
  }
  mantou::advise_large_pages(scratch, bytes);
  created->threads = threads;
  created->scratch = static_cast<char*>(scratch);
  created->instructions = instructions;
  created->capture = nullptr;
  *context = created;
  return MANTOU_OK;
}

int64_t mantou_context_bytes(void) { return 0; }

int32_t mantou_context_destroy(mantou_context* context) {
  if (!context) return MANTOU_OK;
  delete context->capture;
  std::free(context->scratch);
  delete context;
  return MANTOU_OK;
}

// ---- description -------------------------------------------------------------------------------------------------

static void processor_model(char* text, size_t capacity) {
  std::snprintf(text, capacity, "%s", "unknown processor");
#if defined(__linux__)
  FILE* file = std::fopen("/proc/cpuinfo", "re");
  if (!file) return;
  char line[512];
  while (std::fgets(line, sizeof line, file)) {
    const char* colon = std::strchr(line, ':');
    if (!colon || std::strncmp(line, "model name", 10) != 0) continue;
    line[std::strcspn(line, "\n")] = '\0';
    std::snprintf(text, capacity, "%s", colon + 1 + std::strspn(colon + 1, " \t"));
    break;
  }
  std::fclose(file);
#elif defined(__APPLE__)
  char name[256];
  size_t length = sizeof name;
  if (sysctlbyname("machdep.cpu.brand_string", name, &length, nullptr, 0) == 0)
    std::snprintf(text, capacity, "%s", name);
#endif
}

int32_t mantou_context_describe(mantou_context* context, char* text, int64_t capacity) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NULL(text);
  CHECK(capacity > 0, "%s: capacity is %lld; it must be positive", __func__, static_cast<long long>(capacity));
  char model[512];
  processor_model(model, sizeof model);
  std::snprintf(text, static_cast<size_t>(capacity), "%s, %d thread%s, %s", model, context->threads,
                context->threads == 1 ? "" : "s", context->instructions->text);
  return MANTOU_OK;
}

int32_t mantou_context_preferred_dtype(mantou_context* context, int32_t* dtype, char* reason, int64_t capacity) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NULL(dtype, reason);
  CHECK(capacity > 0, "%s: capacity is %lld; it must be positive", __func__, static_cast<long long>(capacity));
  const bool pairs = context->instructions->unit != mantou::ProductUnit::VECTORS;
  *dtype = pairs ? MANTOU_BFLOAT16 : MANTOU_FLOAT32;
  std::snprintf(reason, static_cast<size_t>(capacity), pairs ? "the chip has %s" : "the chip has no bfloat16 products",
                context->instructions->text);
  return MANTOU_OK;
}
