;; Wants 64 MiB before it starts.
(module
  (memory (export "memory") 1024)
  (func (export "_start")))
