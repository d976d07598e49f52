# Looks at the consumer's compile line for anything that accel has no business to add.

file(READ "${COMMANDS}" text)
string(JSON line GET "${text}" 0 command)

foreach(flag -DSET_BY_THE_CONSUMER "-std=(gnu|c)\\+\\+20" -isystem -idirafter)
  if(NOT line MATCHES " ${flag}")
    message(FATAL_ERROR "${flag} is missing in: ${line}")
  endif()
endforeach()
foreach(flag -W -f -O -g -I -m)
  if(line MATCHES " ${flag}[^ ]*")
    message(FATAL_ERROR "accel brought ${CMAKE_MATCH_0} into: ${line}")
  endif()
endforeach()
