// Captured work: a list of calls, done one after the other when it is replayed.
#include "graph.h"

#include <chrono>

int32_t mantou_capture_begin(mantou_context* context) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_CAPTURED(context);
  context->capture = new (std::nothrow) mantou_graph;
  if (!context->capture) return mantou::fail(MANTOU_OUT_OF_MEMORY, "%s: no memory for a record", __func__);
  return MANTOU_OK;
}

int32_t mantou_capture_end(mantou_context* context, mantou_graph** graph) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NULL(graph);
  *graph = context->capture;
  context->capture = nullptr;
  CHECK(*graph, "%s: no capture has begun", __func__);
  return MANTOU_OK;
}

int32_t mantou_graph_replay(mantou_context* context, mantou_graph* graph, double* milliseconds) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NULL(graph);
  CHECK_NOT_CAPTURED(context);
  using Clock = std::chrono::steady_clock;
  Clock::time_point last = Clock::now();
  for (const auto& operation : graph->operations) {
    RETURN_IF_FAILED(operation());
    if (!milliseconds) continue;
    const Clock::time_point now = Clock::now();
    *milliseconds++ += std::chrono::duration<double, std::milli>(now - last).count();
    last = now;
  }
  return MANTOU_OK;
}

int32_t mantou_graph_destroy(mantou_context* context, mantou_graph* graph) {
  CHECK_NOT_NULL(context);
  delete graph;
  return MANTOU_OK;
}
