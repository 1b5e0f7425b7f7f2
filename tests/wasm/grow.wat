;; Takes memory, 1 MiB at a time, and writes to each page; says so on standard error when it is refused, and traps.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "refused\n")
  (func (export "_start")
    (local $page i32) (local $end i32)
    (loop $more
      (local.set $page (memory.grow (i32.const 16)))
      (if (i32.eq (local.get $page) (i32.const -1))
        (then
          (i32.store (i32.const 0) (i32.const 64))
          (i32.store (i32.const 4) (i32.const 8))
          (drop (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
          (unreachable)))
      (local.set $page (i32.mul (local.get $page) (i32.const 65536)))
      (local.set $end (i32.add (local.get $page) (i32.const 1048576)))
      (loop $touch
        (i32.store (local.get $page) (i32.const 1))
        (local.set $page (i32.add (local.get $page) (i32.const 4096)))
        (br_if $touch (i32.lt_u (local.get $page) (local.get $end))))
      (br $more))))
