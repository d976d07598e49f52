# Makes a git repository of the sources, and writes the name of its one commit beside it: <REPOSITORY>.commit

cmake_minimum_required(VERSION 3.25)

# The settings of whoever runs the tests are not asked, and equal sources make an equal commit.
foreach(variable GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY)
  unset(ENV{${variable}})
endforeach()
set(ENV{GIT_CONFIG_GLOBAL} /dev/null)
set(ENV{GIT_CONFIG_NOSYSTEM} 1)
foreach(role AUTHOR COMMITTER)
  set(ENV{GIT_${role}_NAME} accel)
  set(ENV{GIT_${role}_EMAIL} accel@example.org)
  set(ENV{GIT_${role}_DATE} "2000-01-01T00:00:00Z")
endforeach()

function(git result)
  execute_process(COMMAND "${GIT}" "--git-dir=${REPOSITORY}/.git" "--work-tree=${SOURCE_DIR}" ${ARGN}
    OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE failed OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(failed)
    message(FATAL_ERROR "git ${ARGN}: ${output}")
  endif()
  set(${result} "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE "${REPOSITORY}")
file(MAKE_DIRECTORY "${REPOSITORY}")
git(ignored init --quiet)
git(ignored -c core.autocrlf=false add --all "${SOURCE_DIR}")
git(ignored commit --quiet --message "the sources as they are")
git(commit rev-parse HEAD)
file(WRITE "${REPOSITORY}.commit" "${commit}")
