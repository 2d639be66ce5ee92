/* Configurations of Envoy's filters are Python objects; see envoy_config.h. */
#include "envoy_config.h"

#include <stdio.h>
#include <string.h>

static void envoy_log(int level, const char *text) {
  if (envoy_dynamic_module_callback_log) {
    envoy_dynamic_module_callback_log(level, (envoy_buffer){text, strlen(text)});
  } else {
    fprintf(stderr, "proxylib: %s\n", text);
  }
}

void envoy_log_exception(const char *what) {
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  PyErr_NormalizeException(&type, &value, &trace);
  PyObject *text = value ? PyObject_Str(value) : NULL;
  char line[2048];
  snprintf(line, sizeof line, "proxylib: %s: %s: %s", what,
           type ? ((PyTypeObject *)type)->tp_name : "error",
           text && PyUnicode_AsUTF8(text) ? PyUnicode_AsUTF8(text) : "?");
  PyErr_Clear();
  envoy_log(LOG_ERROR, line);
  Py_XDECREF(text);
  Py_XDECREF(type);
  Py_XDECREF(value);
  Py_XDECREF(trace);
}

void *envoy_new_config(const char *function, envoy_buffer name, envoy_buffer config) {
  if (!python_start()) {
    envoy_log(LOG_ERROR, "proxylib: Python did not start; the reason is on stderr");
    return NULL;
  }
  python_enter();
  PyObject *result = PyObject_CallMethod(embed_module, function, "y#y#", name.ptr ? name.ptr : "",
                                         (Py_ssize_t)name.length, config.ptr ? config.ptr : "",
                                         (Py_ssize_t)config.length);
  if (!result) envoy_log_exception("filter configuration refused");
  python_leave();
  return result;
}

void envoy_destroy_config(const void *config) {
  python_enter();
  PyObject *result = PyObject_CallMethod((PyObject *)config, "close", NULL);
  if (!result) envoy_log_exception("closing a filter configuration");
  Py_XDECREF(result);
  Py_DECREF((PyObject *)config);
  python_leave();
}
