// What rsfast.ops._cpu and rsfast.ops._cuda share: Python functions of C++ functions, whose arguments are integers (some are
// addresses) and strings. This keeps to the limited API of CPython 3.10, so one binary loads in that and in later versions.
#pragma once

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "noise.h"

namespace rsfast {

// Other threads of Python run while this lives.
class GilReleased {
 public:
  GilReleased() : state_(PyEval_SaveThread()) {}
  ~GilReleased() noexcept(false) { PyEval_RestoreThread(state_); }  // at exit, before 3.14, it unwinds a daemon thread
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;

 private:
  PyThreadState* state_;
};

class PythonError {};  // thrown where Python knows the error already

// Returns what `object` is; a T is an integer or a string.
template <class T>
T from_python(PyObject* object) {
  if constexpr (std::is_same_v<T, std::string>) {
    Py_ssize_t length = 0;
    const char* text = PyUnicode_AsUTF8AndSize(object, &length);
    if (!text) throw PythonError();
    return {text, static_cast<size_t>(length)};
  } else {
    using Widest = std::conditional_t<std::is_signed_v<T>, long long, unsigned long long>;
    PyObject* index = PyNumber_Index(object);
    if (!index) throw PythonError();
    Widest value;
    if constexpr (std::is_signed_v<T>)
      value = PyLong_AsLongLong(index);
    else
      value = PyLong_AsUnsignedLongLong(index);
    Py_DECREF(index);
    if (value == static_cast<Widest>(-1) && PyErr_Occurred()) throw PythonError();
    if (value < std::numeric_limits<T>::min() || value > std::numeric_limits<T>::max())
      throw std::overflow_error("an integer of " + std::to_string(8 * sizeof(T)) + " bits cannot be " +
                                std::to_string(value));
    return static_cast<T>(value);
  }
}

inline PyObject* to_python(int value) { return PyLong_FromLong(value); }

inline PyObject* to_python(const std::string& text) { return PyUnicode_FromStringAndSize(text.data(), text.size()); }

inline PyObject* to_python(const std::vector<std::string>& texts) {
  PyObject* list = PyList_New(texts.size());
  for (size_t i = 0; list && i < texts.size(); ++i) {
    PyObject* text = to_python(texts[i]);
    if (!text || PyList_SetItem(list, i, text)) {
      Py_DECREF(list);
      return nullptr;
    }
  }
  return list;
}

inline PyObject* to_python(const std::pair<size_t, size_t>& sizes) {
  return Py_BuildValue("nn", static_cast<Py_ssize_t>(sizes.first), static_cast<Py_ssize_t>(sizes.second));
}

template <class Result, class... Arguments, size_t... I>
PyObject* call(Result (*function)(Arguments...), [[maybe_unused]] PyObject* const* given, std::index_sequence<I...>) {
  if constexpr (std::is_void_v<Result>) {
    function(from_python<std::decay_t<Arguments>>(given[I])...);
    return Py_BuildValue("");
  } else {
    return to_python(function(from_python<std::decay_t<Arguments>>(given[I])...));
  }
}

template <class Result, class... Arguments>
PyObject* checked_call(Result (*function)(Arguments...), PyObject* const* given, Py_ssize_t count) {
  constexpr size_t wanted = sizeof...(Arguments);
  try {
    if (static_cast<size_t>(count) == wanted) return call(function, given, std::make_index_sequence<wanted>());
    PyErr_Format(PyExc_TypeError, "takes %zu arguments by position, got %zd", wanted, count);
  } catch (const PythonError&) {
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::overflow_error& error) {
    PyErr_SetString(PyExc_OverflowError, error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// An entry of a module's table: function(arguments by position).
template <auto function>
PyMethodDef python_function(const char* name, const char* doc) {
  PyObject* (*const fast)(PyObject*, PyObject* const*, Py_ssize_t) =
      [](PyObject*, PyObject* const* given, Py_ssize_t count) { return checked_call(function, given, count); };
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(fast)), METH_FASTCALL, doc};
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Functions that both modules have, by which Python compares itself with the binary.
inline std::string version() { return RSFAST_VERSION; }
inline std::vector<std::string> draws() { return {RSFAST_DRAWS(RSFAST_DRAW_NAME)}; }
inline std::pair<size_t, size_t> sizes() { return {sizeof(PerturbJob), sizeof(AccumulateJob)}; }

}  // namespace rsfast
