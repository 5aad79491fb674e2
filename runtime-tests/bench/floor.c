/* floor ROOTFS PROGRAM [ARG…]: the least that a container can cost.
 *
 * One clone3(2) into the same namespaces, the mounts and devices of the default configuration with mount(2), pivot_root(2) and
 * execve(2), without a configuration to read, a state to keep or anything to protect. FLOOR_CGROUPS=DIR:DIR… makes a leaf in
 * each of these cgroup directories and puts the process there.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 32 };

static void must(int result, const char *what) {
  if (result < 0) err(99, "%s", what);
}

static void copy_file(const char *from, const char *to) {
  char text[256];
  int in = open(from, O_RDONLY), out = open(to, O_WRONLY);
  ssize_t length = in < 0 ? -1 : read(in, text, sizeof text);
  if (length > 0 && out >= 0 && write(out, text, length) < 0) warn("%s", to);
  if (in >= 0) close(in);
  if (out >= 0) close(out);
}

static void enter_cgroup(const char *leaf, const char *above, pid_t pid) {
  char from[512], to[512], number[16];
  must(mkdir(leaf, 0755), leaf);
  /* A v1 cpuset takes no process before it has both. */
  const char *files[] = {"cpuset.cpus", "cpuset.mems"};
  for (int i = 0; i < 2 && strstr(above, "cpuset"); i++) {
    snprintf(from, sizeof from, "%.400s/%s", above, files[i]);
    snprintf(to, sizeof to, "%.400s/%s", leaf, files[i]);
    copy_file(from, to);
  }
  snprintf(to, sizeof to, "%.400s/cgroup.procs", leaf);
  int file = open(to, O_WRONLY);
  must(file, to);
  int length = snprintf(number, sizeof number, "%d", pid);
  must(write(file, number, length), to);
  close(file);
}

static void inside(const char *root, char **argv) {
  must(mount("", "/", NULL, MS_REC | MS_SLAVE, NULL), "make / a slave");
  must(mount(root, root, NULL, MS_BIND | MS_REC, NULL), "bind the rootfs");
  must(chdir(root), root);
  static const struct { const char *type, *place; unsigned long flags; const char *data; } mounts[] = {
      {"proc", "proc", 0, NULL},
      {"tmpfs", "dev", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"},
      {"devpts", "dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
      {"tmpfs", "dev/shm", MS_NOSUID | MS_NOEXEC | MS_NODEV, "mode=1777,size=65536k"},
      {"mqueue", "dev/mqueue", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL},
      {"sysfs", "sys", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY, NULL},
      {"cgroup2", "sys/fs/cgroup", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY, NULL},
  };
  for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
    mkdir(mounts[i].place, 0755);
    must(mount(mounts[i].type, mounts[i].place, mounts[i].type, mounts[i].flags, mounts[i].data), mounts[i].place);
  }
  static const struct { const char *name; int major, minor; } devices[] = {
      {"dev/null", 1, 3}, {"dev/zero", 1, 5}, {"dev/full", 1, 7}, {"dev/random", 1, 8}, {"dev/urandom", 1, 9}, {"dev/tty", 5, 0},
  };
  for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
    must(mknod(devices[i].name, S_IFCHR | 0666, makedev(devices[i].major, devices[i].minor)), devices[i].name);
  static const char *const links[][2] = {
      {"/proc/self/fd", "dev/fd"}, {"/proc/self/fd/0", "dev/stdin"}, {"/proc/self/fd/1", "dev/stdout"},
      {"/proc/self/fd/2", "dev/stderr"}, {"pts/ptmx", "dev/ptmx"},
  };
  for (size_t i = 0; i < sizeof links / sizeof *links; i++) must(symlink(links[i][0], links[i][1]), links[i][1]);
  static const char *const read_only[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"};
  for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++)
    if (mount(read_only[i], read_only[i], NULL, MS_BIND | MS_REC, NULL) == 0)
      must(mount(NULL, read_only[i], NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL), read_only[i]);
  static const char *const masked[] = {"proc/kcore", "proc/keys", "proc/timer_list", "proc/latency_stats", "proc/sched_debug"};
  for (size_t i = 0; i < sizeof masked / sizeof *masked; i++) (void)mount("/dev/null", masked[i], NULL, MS_BIND, NULL);
  must(sethostname("floor", 5), "sethostname");
  must((int)syscall(SYS_pivot_root, ".", "."), "pivot_root");
  must(umount2(".", MNT_DETACH), "umount");
  must(chdir("/"), "chdir");
  execv(argv[0], argv);
  err(98, "%s", argv[0]);
}

int main(int argc, char **argv) {
  if (argc < 3) errx(2, "usage: %s ROOTFS PROGRAM [ARG...]", argv[0]);
  int go[2];
  must(pipe2(go, O_CLOEXEC), "pipe");
  struct clone_args args = {
      .flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP,
      .exit_signal = SIGCHLD,
  };
  pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
  must(pid, "clone3");
  char byte = 0;
  if (pid == 0) {
    if (read(go[0], &byte, 1) != 1) _exit(97);
    inside(argv[1], argv + 2);
  }
  char leaves[MOST][512];
  int count = 0;
  char *list = getenv("FLOOR_CGROUPS");
  for (char *above = list ? strtok(list, ":") : NULL; above && count < MOST; above = strtok(NULL, ":")) {
    snprintf(leaves[count], sizeof leaves[count], "%.400s/floor-%d", above, getpid());
    enter_cgroup(leaves[count++], above, pid);
  }
  must((int)write(go[1], &byte, 1), "pipe");
  int status = 0;
  must(waitpid(pid, &status, 0), "waitpid");
  while (count > 0) must(rmdir(leaves[--count]), "rmdir");
  return WIFEXITED(status) ? WEXITSTATUS(status) : 96;
}
